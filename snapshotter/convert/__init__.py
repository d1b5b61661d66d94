"""Making images that can be pulled lazily: from any source to any destination, layer by layer.

    source ----> LayerWork: fetch -> convert -> put ----> destination
      root, manifests, configs ----> rewritten ------------^  the name last

Who decides how a layer is converted is an OptionsFor: `layergate convert` by its options, `layergate
optimize` by what a run of the image has opened.

image         convert_image
layers        the layers' way, with overlap
documents     configs, manifests and indexes rewritten
choice        how `layergate convert` decides
layer_file    one layer, from file to file
run           sources and destinations by their names, for the commands
"""
