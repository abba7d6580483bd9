//! The memcomparable encoding, ranges of keys, and the catalogue of requests, on arbitrary bytes.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    tikv_fuzz::codec::memcomparable(data);
    tikv_fuzz::codec::ranges(data);
    tikv_fuzz::codec::catalogue(data);
});
