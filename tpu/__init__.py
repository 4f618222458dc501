"""TPU pods: their topologies, whether a run fits one, what it costs, and commands that create, use and delete one."""
