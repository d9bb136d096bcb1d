//! The plain version of every operator, in f32 on the CPU: what everything is judged by.
