//! Raw writes at a leader that is new.

use tikv_proto::kvrpcpb::{self, ApiVersion};

use crate::cluster::Config;
use crate::cluster::tests::{Bench, NOW};

#[test]
fn raw_data_ordered_by_timestamps_waits_for_them() {
    for (api_version, waits) in [(ApiVersion::V1, false), (ApiVersion::V2, true)] {
        let mut b = Bench::with(Config {
            api_version,
            sync_max_ts_at_once: false,
            ..Config::default()
        });
        let id = b.to(b"rk").0.expect("a context").region_id;
        let put = |b: &mut Bench| {
            let (context, store) = b.to(b"rk");
            let request = kvrpcpb::RawPutRequest {
                context,
                key: "rk".into(),
                value: "v".into(),
                ..Default::default()
            };
            b.cluster.raw_put(NOW, store, request)
        };
        let swap = |b: &mut Bench| {
            let (context, store) = b.to(b"rk");
            let request = kvrpcpb::RawCasRequest {
                context,
                key: "rk".into(),
                previous_not_exist: true,
                ..Default::default()
            };
            b.cluster.raw_compare_and_swap(NOW, store, request)
        };
        b.cluster.transfer_leader(NOW, id, 2);
        for error in [put(&mut b).region_error, swap(&mut b).region_error] {
            assert_eq!(error.is_some(), waits);
            if let Some(error) = error {
                assert!(error.max_timestamp_not_synced.is_some());
                assert!(!error.message.is_empty());
            }
        }
        b.cluster.sync_max_ts(NOW, id);
        assert_eq!(put(&mut b), Default::default());
    }
}
