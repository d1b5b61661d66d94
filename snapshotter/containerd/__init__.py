"""Our side of containerd's client API: a typed client, and pulling an image through it."""
