//! Reads of what is no more.

use crate::cluster::Config;
use crate::cluster::tests::Bench;

#[test]
fn a_read_of_collected_versions_is_a_hole_or_a_failure() {
    for refuse_reads_of_garbage in [false, true] {
        let mut b = Bench::with(Config {
            refuse_reads_of_garbage,
            ..Config::default()
        });
        for start_ts in [5, 8] {
            b.must_prewrite_put(b"k", b"v", b"k", start_ts);
            b.must_commit(b"k", start_ts, start_ts + 1);
        }
        b.must_get(b"k", 7, b"v");
        b.cluster.collect_garbage(10);
        match refuse_reads_of_garbage {
            true => assert!(b.must_get_err(b"k", 7).abort.contains("garbage")),
            false => b.must_get_none(b"k", 7),
        }
        b.must_get(b"k", 10, b"v");
    }
}
