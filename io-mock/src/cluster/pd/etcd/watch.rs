//! One watch: which changes it tells, and how far it has got.

use tikv_proto::meta_storagepb::{Event, event};

use super::kv;
use super::messages::{Header, WatchCreate, WatchResponse};
use crate::cluster::pd::Pd;
use crate::cluster::pd::meta_storage::Range;

/// A filter that leaves out puts.
const NO_PUT: i32 = 0;
/// A filter that leaves out deletions.
const NO_DELETE: i32 = 1;

/// A watch, as long as it lasts.
#[derive(Clone, Debug)]
pub(crate) struct Watcher {
    id: i64,
    range: Range,
    puts: bool,
    deletes: bool,
    prev_kv: bool,
    /// The revision to go on from.
    next: i64,
}

impl Watcher {
    fn wants(&self, event: &Event) -> bool {
        match event.r#type() {
            event::EventType::Put => self.puts,
            event::EventType::Delete => self.deletes,
        }
    }
}

impl Pd {
    /// Begins a watch under an id.
    pub(crate) fn etcd_watch(&self, id: i64, request: &WatchCreate) -> Watcher {
        // No key at all is every key.
        let all = request.key.is_empty();
        let key = match all {
            true => bytes::Bytes::from_static(&[0]),
            false => request.key.clone(),
        };
        Watcher {
            id,
            range: kv::range(&key, &request.range_end),
            puts: !request.filters.contains(&NO_PUT),
            deletes: !request.filters.contains(&NO_DELETE),
            prev_kv: request.prev_kv,
            next: match request.start_revision {
                ..=0 => self.meta.revision() + 1,
                given => given,
            },
        }
    }

    /// What a watch tells next, if anything has happened that it wants to know. An answer that is
    /// marked as cancelled is its last.
    pub(crate) fn etcd_next(&self, member: usize, watcher: &mut Watcher) -> Option<WatchResponse> {
        let response = WatchResponse {
            header: self.etcd_header(member),
            watch_id: watcher.id,
            ..WatchResponse::default()
        };
        if watcher.next <= self.meta.compacted() {
            return Some(WatchResponse {
                canceled: true,
                compact_revision: self.meta.compacted(),
                ..response
            });
        }
        let changes = self.meta.since(&watcher.range, watcher.next);
        let wanted = changes.filter(|event| watcher.wants(event)).cloned();
        let events = wanted.map(|event| Event {
            prev_kv: event.prev_kv.filter(|_| watcher.prev_kv),
            ..event
        });
        let events: Vec<Event> = events.collect();
        // A watch may begin in the future.
        watcher.next = watcher.next.max(self.meta.revision() + 1);
        (!events.is_empty()).then_some(WatchResponse { events, ..response })
    }

    /// The revision that all watches have been told of, under the id of none.
    pub(crate) fn etcd_progress(&self, member: usize) -> WatchResponse {
        WatchResponse {
            header: self.etcd_header(member),
            watch_id: -1,
            ..WatchResponse::default()
        }
    }

    /// What a client is told of a watch that begins or ends.
    pub(crate) fn etcd_watch_header(&self, member: usize) -> Option<Header> {
        self.etcd_header(member)
    }
}
