"""Search: which variant of a family is fastest for a problem on a device."""
