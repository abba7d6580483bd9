//! Frames of the BatchCommands stream, on arbitrary bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    tikv_fuzz::frame::answers(data);
    tikv_fuzz::frame::requests(data);
    tikv_fuzz::frame::stream(data);
});
