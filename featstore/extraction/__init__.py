"""Extraction: photos through frozen networks into a store.

extract    the run from beginning to end: list, plan, carry out; and `retry`
changes    a folder of photos held against the images table: new, changed, touched, gone
networks   the tensors that are asked for, and the weights and networks that make them
plan       what has to be computed, what can be copied, and why
run        carries a plan out: jobs to whatever computes, whole shards of rows to the store
pipeline   decode and forward, overlapped, in one process; `forward` is the device's side of it
rows       a shard of rows being filled, and features copied from other tensors and stores
cluster    the same jobs on the workers of a Dask cluster; `worker` runs there
timing     how busy each stage was; `summary` is what the caller is told
estimate   how long it will take; `recompute` proves what is stored
"""
