"""``erw prepare``: a source of images becomes a dataset, a shard at a time.

    OUT/...                    the dataset (`erw.data.store`)
        .work/job.json         what is being prepared, while it is
        .work/000012.json      of each finished shard: what became of its images
        .work/source.tar       a compressed tar without its compression

A shard is a function of the source and the recipe alone, written whole or not at all. So a restart does the missing ones,
and any number of processes leave the same bytes.
"""
