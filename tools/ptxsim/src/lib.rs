//! A CUDA driver that runs PTX on the CPU, checks every access and counts every instruction.
