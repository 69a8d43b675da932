"""Launch scripts in bash, read and never run: variables, arrays, defaults, quoted blocks, branches that can be decided."""
