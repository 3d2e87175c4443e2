"""XLA's flags for programs that are compiled for longer than they run, as almost all of the tests' are."""

import importlib.metadata

LLVM = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # older XLAs know these, too
# One module a program and loops without MLIR compile faster still. XLA ends at a flag that it does not know.
QUICK = f"{LLVM} --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
