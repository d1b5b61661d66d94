"""scripts/demo: the main job on real parts, told step by step.

| module | has |
|---|---|
| `stage` | registry, throttled link, containerd and layergate, in a directory of their own |
| `pictures` | the image to show: the cached one, or the user's own |
| `acts` | the steps, and what has to hold in each |
| `telling` | how it is printed |
"""
