"""Which errors mean that memory did not suffice: of Python, torch, CUDA's libraries and processes that were killed.

Imports no torch: its errors are known by their messages.
"""

#: Parts of messages, in small letters. cuBLAS and cuDNN report a lack of memory as a failed allocation or, where their
#: workspace does not fit, as an execution or initialisation that failed.
MESSAGES = (
    "memoryerror",  # Python's own, in the words of a process that ended by it
    "out of memory",  # torch.OutOfMemoryError, CUDA's own, and multi_gpu.py of a process that was killed
    "can't allocate memory",  # torch's allocator on the CPU
    "cannot allocate memory",  # errno 12
    "unable to allocate",  # numpy
    "failed to allocate",
    "insufficient memory",  # OpenCV
    "bad_alloc",  # ONNX Runtime, which says "failed to allocate" too
    "cublas_status_alloc_failed",
    "cublas_status_not_initialized",
    "cudnn_status_alloc_failed",
    "cudnn_status_not_initialized",
    "cudnn_status_internal_error_host_allocation_failed",
    "cudnn_status_internal_error_device_allocation_failed",
    "unable to find an engine to execute this computation",  # cuDNN without room for any workspace
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that caused it, is a lack of memory that a smaller batch may mend."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        text = str(error).lower()
        if any(part in text for part in MESSAGES):
            return True
        error = error.__cause__ or error.__context__
    return False
