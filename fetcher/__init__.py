"""From a registry to verified bytes in a plain directory.

References and credentials, the registry client, the eStargz format (footer,
table of contents, tree), opening a layer, and streaming it into plain files.
Unverified bytes never leave this package.
"""
