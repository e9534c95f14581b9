"""What torch.compile is told about a model's parts on a CPU. Importing it imports the compiler."""

from typing import Any

from torch._functorch.partitioners import default_partition
from torch._inductor.custom_graph_pass import CustomPartitionerFn, get_hash_for_files


class KeptAsWritten(CustomPartitionerFn):
    """What is kept for the backward is what the operations keep (`erw.kernels._cpu_linear` and its neighbours): the compiler's
    own choice would compute GELU's exponential twice."""

    def __call__(self, gm, joint_inputs, *, compiler, **known):
        return default_partition(gm, joint_inputs, **known)

    def uuid(self):
        return get_hash_for_files((__file__,))


OPTIONS: dict[str, Any] = {
    "custom_partitioner_fn": KeptAsWritten(),
    # The compiler's form of softmax guards against rows that are masked as a whole. None of ours is.
    "online_softmax": False,
}
