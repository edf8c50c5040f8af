// Stands in until the CPU kernels are here.
