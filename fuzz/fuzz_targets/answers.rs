#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| metorial_proxy_fuzz::properties::answers(data));
