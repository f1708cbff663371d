"""Which errors mean that memory did not suffice."""

import pytest
import torch

from siimcovid.core.memory_errors import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("training stage study in 2 processes failed with exit code 1: MemoryError"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("Unable to find an engine to execute this computation"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 12 GB"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_lack_of_memory(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("fold 9"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        OSError(28, "No space left on device"),
        KeyboardInterrupt(),
    ],
    ids=str,
)
def test_other_errors(error):
    assert not is_out_of_memory(error)


def test_the_cause_counts():
    error = RuntimeError("the batch failed")
    error.__cause__ = MemoryError()
    assert is_out_of_memory(error)


def test_numpys_own():
    with pytest.raises(MemoryError) as caught:
        bytearray(1 << 62)
    assert is_out_of_memory(caught.value)
