"""`layergate optimize`: an image runs in a sandbox, and its layers begin with what it opened there.

inflating   a layer's tar out of its file
unpack      a process of its own that unpacks an image's layers into a root file system
scratch     a small file system for that, without read-ahead, so that what was read can be told
residency   which parts of a file have been read
spec        the image's config as the sandbox's runtime spec
sandbox     the run itself, by runc
run         all of it, from an image's layers to an order for each of them
"""
