# Two tools in a pipeline, as in the script of UnixBench's shell1.
od "$0" | sort -n -k 1 >/dev/null
