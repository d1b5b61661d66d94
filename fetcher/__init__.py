"""From a registry to verified bytes in a plain directory.

References and credentials, the registry client, the formats eStargz and
zstd:chunked (footer, table of contents, members, tree), opening a layer, and
streaming it into plain files.
Unverified bytes never leave this package.
"""
