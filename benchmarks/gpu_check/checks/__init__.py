"""The checks, one file per thing that is checked."""
