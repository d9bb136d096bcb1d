//! Execution: any kernel runs to its end, to a fault or out of its instructions, and without a finding it does the same with
//! and without checks.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use ptxsim::{Checks, LaunchConfig, LoadedModule, Memory, Module, Options, launch};

/// Bytes of the buffer that each parameter points to.
const BUFFER: u64 = 1 << 12;

fuzz_target!(|text: &str| {
    let Ok(module) = Module::parse(text) else { return };
    let module = Arc::new(module);
    for kernel in module.kernels().into_iter().take(4) {
        let run = |checks: Checks| {
            let memory = Memory::new(1 << 22);
            let loaded = LoadedModule::load(module.clone(), &memory).ok()?;
            let buffer = memory.alloc(BUFFER, 256).ok()?;
            memory.fill(buffer, &[1], BUFFER).ok()?;
            let size = kernel.required_block.unwrap_or([48.min(kernel.max_threads), 1, 1]);
            let mut config = LaunchConfig::with_dims(kernel.required_cluster.unwrap_or([2, 1, 1]), size).shared(512);
            config.cluster = kernel.required_cluster.unwrap_or([1; 3]);
            config.params = vec![0; kernel.param_bytes as usize];
            for p in &kernel.params {
                // Pointers lead to the buffer; scalars are small.
                let value = if p.bytes == 8 { buffer } else { 5 };
                let (at, n) = (p.offset as usize, p.bytes.min(8) as usize);
                config.params[at..at + n].copy_from_slice(&value.to_le_bytes()[..n]);
            }
            let options = Options { checks, threads: 1, max_instructions: 20_000, ..Options::default() };
            let report = launch(&memory, &loaded, &kernel.name, &config, &options).ok()?;
            let mut bytes = vec![0; BUFFER as usize];
            memory.read(buffer, &mut bytes).ok()?;
            Some((report, bytes))
        };
        let Some((checked, bytes)) = run(Checks::ALL) else { continue };
        if checked.is_clean() {
            let (plain, same) = run(Checks::NONE).expect("it ran before");
            assert!(plain.is_clean());
            assert_eq!(bytes, same);
            assert_eq!(checked.counters.total, plain.counters.total);
        }
    }
});
