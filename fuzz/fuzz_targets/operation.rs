//! Calls of an application, answered with what the input says: what an honest cluster would say,
//! nothing, another error, or nonsense.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| tikv_fuzz::application::run(data));
