"""What `layergate serve` keeps of what containers read, for `layergate optimize --from-image`.

store       ROOT/records: the files, finding, merging, removing
containers  recording the opens of each image's first container
"""
