"""Mounting an image or a layer by hand: no containerd and no `layergate serve` is needed.

Each mount that is not complete yet has a keeper, a process of its own that brings the layers, swaps what is
mounted for native directories in place, and ends. `keeper` is the whole story; the others are its parts:

    request, source, layers, opening    from what the user names to opened layers in the store
    views, upper                        what is mounted, lazily and natively
    state, listing, release             ROOT/mounts: which mounts there are, and taking one away
    mounting, launch, messages          the keeper's process, and what it tells the command
"""
