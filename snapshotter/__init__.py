"""From containerd to a mounted image.

The gRPC service and the snapshots behind it, their metadata, the client of
containerd's own services, configuration, workers, and the command line.
"""
