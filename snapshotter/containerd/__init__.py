"""Our side of containerd's client API: a typed client, and pulling an image through it.

Nothing is re-exported here, so that showing progress does not import grpc.
"""
