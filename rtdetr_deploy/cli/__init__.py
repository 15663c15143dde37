"""The command line of `rtdetr-detect`, and what all command lines share."""
