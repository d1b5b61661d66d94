"""What a hostile registry, image, container or local user may try, and what comes of it: docs/security.md."""
