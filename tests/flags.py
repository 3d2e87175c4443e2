"""XLA's flags for programs that are compiled for longer than they run, as almost all of the tests' are."""

LLVM = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # older XLAs know these, too
# Loops without MLIR, and one module a program, compile in a third of the time.
QUICK = (
    f"{LLVM} --xla_cpu_opt_preset=CPU_OPT_PRESET_FAST_COMPILE --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)
