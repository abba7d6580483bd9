//! PD's small store of keys and values that can be watched, close to etcd's interface: one
//! revision counts all changes, and a range is a prefix or a pair of bounds.
//!
//! The global configuration lives in it too, and [etcd](super::etcd) itself is another way in.

use std::collections::BTreeMap;

use bytes::Bytes;
use tikv_proto::meta_storagepb::{
    DeleteRequest, DeleteResponse, ErrorType, Event, GetRequest, GetResponse, KeyValue, PutRequest,
    PutResponse, ResponseHeader, WatchRequest, WatchResponse, event,
};

use super::Pd;
use super::etcd::Leases;
use crate::cluster::failure::{GrpcCode, GrpcError};

/// Everything stored, and what has happened to it.
#[derive(Clone, Debug)]
pub(super) struct MetaStorage {
    pub(super) revision: i64,
    /// Changes up to this one are forgotten.
    pub(super) compacted: i64,
    pub(super) entries: BTreeMap<Bytes, KeyValue>,
    /// One change each, with the value before it.
    pub(super) events: Vec<Event>,
    pub(super) leases: Leases,
}

impl Default for MetaStorage {
    fn default() -> Self {
        MetaStorage {
            // Clients take the revision before the first change for one that there is.
            revision: 1,
            compacted: 0,
            entries: BTreeMap::new(),
            events: Vec::new(),
            leases: Leases::default(),
        }
    }
}

impl MetaStorage {
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// The revision whose changes, and older ones, are forgotten.
    pub(super) fn compacted(&self) -> i64 {
        self.compacted
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.entries.get(key)
    }

    pub(super) fn put(&mut self, key: Bytes, value: Bytes, lease: i64) -> Option<KeyValue> {
        self.put_at(self.revision + 1, key, value, lease)
    }

    /// Puts a key at the present revision, which others have begun, or at the next one.
    pub(super) fn put_at(
        &mut self,
        revision: i64,
        key: Bytes,
        value: Bytes,
        lease: i64,
    ) -> Option<KeyValue> {
        self.revision = revision;
        let before = self.entries.get(&key).cloned();
        let entry = KeyValue {
            key: key.clone(),
            create_revision: before
                .as_ref()
                .map_or(self.revision, |kv| kv.create_revision),
            mod_revision: self.revision,
            version: before.as_ref().map_or(1, |kv| kv.version + 1),
            value,
            lease,
        };
        self.entries.insert(key, entry.clone());
        self.events.push(Event {
            r#type: event::EventType::Put.into(),
            kv: Some(entry),
            prev_kv: before.clone(),
        });
        before
    }

    pub(super) fn delete(&mut self, range: &Range) -> Vec<KeyValue> {
        self.delete_at(self.revision + 1, range)
    }

    /// Deletes keys at the present revision, which others have begun, or at the next one.
    pub(super) fn delete_at(&mut self, revision: i64, range: &Range) -> Vec<KeyValue> {
        let keys: Vec<Bytes> = self.within(range).map(|kv| kv.key.clone()).collect();
        if !keys.is_empty() {
            self.revision = revision;
        }
        let deleted = keys.iter().filter_map(|key| self.entries.remove(key));
        let deleted: Vec<KeyValue> = deleted.collect();
        for before in &deleted {
            self.events.push(Event {
                r#type: event::EventType::Delete.into(),
                kv: Some(KeyValue {
                    key: before.key.clone(),
                    mod_revision: self.revision,
                    ..KeyValue::default()
                }),
                prev_kv: Some(before.clone()),
            });
        }
        deleted
    }

    pub(super) fn within<'a>(&'a self, range: &'a Range) -> impl Iterator<Item = &'a KeyValue> {
        self.entries.values().filter(|kv| range.contains(&kv.key))
    }

    /// The keys of a range as they were at a revision whose changes, and later ones, are known.
    pub(super) fn within_at(&self, range: &Range, revision: i64) -> Vec<KeyValue> {
        let now = self.within(range);
        let mut then: BTreeMap<&Bytes, &KeyValue> = now.map(|kv| (&kv.key, kv)).collect();
        let later: Vec<&Event> = self.since(range, revision + 1).collect();
        for event in later.into_iter().rev() {
            match (&event.kv, &event.prev_kv) {
                (_, Some(before)) => then.insert(&before.key, before),
                (Some(kv), None) => then.remove(&kv.key),
                (None, None) => None,
            };
        }
        then.into_values().cloned().collect()
    }

    /// The changes in a range from a revision on.
    pub(super) fn since<'a>(
        &'a self,
        range: &'a Range,
        revision: i64,
    ) -> impl Iterator<Item = &'a Event> {
        let of_range = move |event: &&Event| {
            event
                .kv
                .as_ref()
                .is_some_and(|kv| kv.mod_revision >= revision && range.contains(&kv.key))
        };
        self.events.iter().filter(of_range)
    }

    fn compact(&mut self, revision: i64) {
        self.compacted = self.compacted.max(revision.min(self.revision));
        let compacted = self.compacted;
        let kept = |event: &Event| {
            event
                .kv
                .as_ref()
                .is_some_and(|kv| kv.mod_revision > compacted)
        };
        self.events.retain(kept);
    }
}

/// Keys from the first up to the second. As in etcd, no second key means the first alone, and a
/// zero byte means no end.
#[derive(Clone, Debug)]
pub(super) struct Range {
    pub(super) start: Bytes,
    pub(super) end: Bytes,
}

impl Range {
    /// Every key that begins so.
    pub(super) fn prefix(prefix: &[u8]) -> Self {
        let mut end = prefix.to_vec();
        while let Some(last) = end.last_mut() {
            if *last < 0xff {
                *last += 1;
                break;
            }
            end.pop();
        }
        if end.is_empty() {
            end.push(0);
        }
        Range {
            start: Bytes::copy_from_slice(prefix),
            end: end.into(),
        }
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        match &*self.end {
            [] => *key == *self.start,
            [0] => *key >= *self.start,
            end => *key >= *self.start && key < end,
        }
    }
}

impl Pd {
    /// Forgets the changes up to a revision, as etcd does from time to time: who watches from
    /// there is told so.
    pub fn compact_meta(&mut self, revision: i64) {
        self.meta.compact(revision);
    }

    /// How many changes the metadata storage, and the global configuration in it, have seen.
    pub fn meta_revision(&self) -> i64 {
        self.meta.revision
    }

    /// Whether a member answers. Which cluster a request is meant for is not looked at: clients
    /// leave that out.
    fn check_meta(&self, member: usize) -> Result<(), GrpcError> {
        match self.leader == Some(member) {
            true => Ok(()),
            false => Err(GrpcError::new(GrpcCode::Unavailable, "not leader")),
        }
    }

    fn meta_header(&self) -> Option<ResponseHeader> {
        Some(ResponseHeader {
            cluster_id: self.cluster_id,
            error: None,
            revision: self.meta.revision,
        })
    }

    fn meta_error(&self, message: &str) -> Option<ResponseHeader> {
        let error = tikv_proto::meta_storagepb::Error {
            r#type: ErrorType::Unknown.into(),
            message: message.to_owned(),
        };
        Some(ResponseHeader {
            error: Some(error),
            ..self.meta_header()?
        })
    }

    /// Reads keys of the metadata storage.
    pub fn meta_get(&self, member: usize, request: GetRequest) -> Result<GetResponse, GrpcError> {
        self.check_meta(member)?;
        let range = Range {
            start: request.key,
            end: request.range_end,
        };
        let refused = |message| GetResponse {
            header: self.meta_error(message),
            ..GetResponse::default()
        };
        let mut kvs: Vec<KeyValue> = match request.revision {
            ..=0 => self.meta.within(&range).cloned().collect(),
            at if at > self.meta.revision => {
                let message = "etcdserver: mvcc: required revision is a future revision";
                return Ok(refused(message));
            }
            at if at < self.meta.compacted => {
                let message = "etcdserver: mvcc: required revision has been compacted";
                return Ok(refused(message));
            }
            at => self.meta.within_at(&range, at),
        };
        let count = kvs.len();
        let limit = usize::try_from(request.limit).ok().filter(|&n| n > 0);
        kvs.truncate(limit.unwrap_or(usize::MAX));
        Ok(GetResponse {
            header: self.meta_header(),
            more: kvs.len() < count,
            kvs: kvs.into_iter().map(told).collect(),
            count: count as i64,
        })
    }

    /// Writes a key of the metadata storage.
    pub fn meta_put(
        &mut self,
        member: usize,
        request: PutRequest,
    ) -> Result<PutResponse, GrpcError> {
        self.check_meta(member)?;
        if request.lease != 0 && !self.meta.leases.knows(request.lease) {
            return Ok(PutResponse {
                header: self.meta_error("etcdserver: requested lease not found"),
                prev_kv: None,
            });
        }
        let before = self.meta.put(request.key, request.value, request.lease);
        self.watched += 1;
        Ok(PutResponse {
            header: self.meta_header(),
            prev_kv: before.filter(|_| request.prev_kv).map(told),
        })
    }

    /// Deletes a key of the metadata storage: the first one, whatever the request says of a range.
    pub fn meta_delete(
        &mut self,
        member: usize,
        request: DeleteRequest,
    ) -> Result<DeleteResponse, GrpcError> {
        self.check_meta(member)?;
        let range = Range {
            start: request.key,
            end: Bytes::new(),
        };
        let deleted = self.meta.delete(&range);
        self.watched += 1;
        Ok(DeleteResponse {
            header: self.meta_header(),
            prev_kvs: match request.prev_kv {
                true => deleted.into_iter().map(told).collect(),
                false => Vec::new(),
            },
            ..DeleteResponse::default()
        })
    }

    /// What a watcher is told of the changes from revision `from` on, and where it goes on then;
    /// nothing, if nothing has happened. From 0 on means from now on.
    pub fn meta_watch(
        &self,
        member: usize,
        request: &WatchRequest,
        from: i64,
    ) -> Result<(Option<WatchResponse>, i64), GrpcError> {
        self.check_meta(member)?;
        let next = self.meta.revision + 1;
        if from == 0 {
            return Ok((None, next));
        }
        let mut response = WatchResponse {
            header: self.meta_header(),
            ..WatchResponse::default()
        };
        if from <= self.meta.compacted {
            response.compact_revision = self.meta.compacted;
            if let Some(header) = &mut response.header {
                header.error = Some(tikv_proto::meta_storagepb::Error {
                    r#type: ErrorType::DataCompacted.into(),
                    message: format!(
                        "required watch revision: {from} is smaller than current compact/min \
                         revision {}.",
                        self.meta.compacted
                    ),
                });
            }
            return Ok((Some(response), next));
        }
        let range = Range {
            start: request.key.clone(),
            end: request.range_end.clone(),
        };
        response.events = self.meta.since(&range, from).cloned().collect();
        for event in &mut response.events {
            event.prev_kv = event.prev_kv.take().filter(|_| request.prev_kv).map(told);
        }
        Ok(((!response.events.is_empty()).then_some(response), next))
    }
}

/// What the metadata storage tells of a key, unless somebody watches it: no revisions.
fn told(kv: KeyValue) -> KeyValue {
    KeyValue {
        key: kv.key,
        value: kv.value,
        ..KeyValue::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::pd::testing::pd;

    fn put(pd: &mut Pd, key: &'static str, value: &'static str) -> PutResponse {
        let request = PutRequest {
            key: key.into(),
            value: value.into(),
            prev_kv: true,
            ..PutRequest::default()
        };
        pd.meta_put(0, request).unwrap()
    }

    #[test]
    fn keys_are_told_without_their_revisions_and_deleted_one_by_one() {
        let mut pd = pd();
        put(&mut pd, "a/1", "x");
        put(&mut pd, "a/2", "y");
        let before = put(&mut pd, "a/1", "z").prev_kv.unwrap();
        assert_eq!((&before.value[..], before.version), (&b"x"[..], 0));
        let prefix = Range::prefix(b"a/");
        // No client says which cluster it means.
        let request = GetRequest {
            key: prefix.start.clone(),
            range_end: prefix.end.clone(),
            ..GetRequest::default()
        };
        let found = pd.meta_get(0, request.clone()).unwrap();
        assert_eq!((found.count, found.header.unwrap().revision), (2, 4));
        let kv = &found.kvs[0];
        assert_eq!((&kv.value[..], kv.mod_revision), (&b"z"[..], 0));
        let old = GetRequest {
            revision: 3,
            ..request.clone()
        };
        let found = pd.meta_get(0, old).unwrap();
        assert_eq!(&found.kvs[0].value[..], b"x");
        let delete = DeleteRequest {
            key: "a/1".into(),
            range_end: prefix.end,
            prev_kv: true,
            ..DeleteRequest::default()
        };
        let deleted = pd.meta_delete(0, delete).unwrap();
        assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (0, 1));
        assert_eq!(pd.meta_get(0, request.clone()).unwrap().count, 1);
        pd.set_leader(0, None);
        let refused = pd.meta_get(0, request).unwrap_err();
        assert_eq!(refused.code, GrpcCode::Unavailable);
    }

    #[test]
    fn a_key_hangs_on_no_lease_that_is_not_there() {
        let mut pd = pd();
        let request = PutRequest {
            key: "a".into(),
            lease: 7,
            ..PutRequest::default()
        };
        let error = pd.meta_put(0, request).unwrap().header.unwrap().error;
        assert_eq!(
            error.unwrap().message,
            "etcdserver: requested lease not found"
        );
        assert_eq!(pd.meta_revision(), 1);
    }

    #[test]
    fn a_watcher_sees_every_change_once() {
        let mut pd = pd();
        put(&mut pd, "a", "1");
        let request = WatchRequest {
            key: "a".into(),
            ..WatchRequest::default()
        };
        let (first, from) = pd.meta_watch(0, &request, 1).unwrap();
        assert_eq!(first.unwrap().events.len(), 1);
        assert_eq!(pd.meta_watch(0, &request, from).unwrap(), (None, from));
        put(&mut pd, "b", "another key");
        put(&mut pd, "a", "2");
        let (told, _) = pd.meta_watch(0, &request, from).unwrap();
        let events = told.unwrap().events;
        assert_eq!(events.len(), 1);
        assert_eq!(&events[0].kv.as_ref().unwrap().value[..], b"2");
        pd.compact_meta(2);
        let (told, _) = pd.meta_watch(0, &request, 1).unwrap();
        assert_eq!(told.unwrap().compact_revision, 2);
    }

    #[test]
    fn a_prefix_of_the_greatest_bytes_has_no_end() {
        assert!(Range::prefix(&[0xff]).contains(&[0xff, 1]));
        assert!(!Range::prefix(&[1, 0xff]).contains(&[2]));
        assert!(Range::prefix(&[1, 0xff]).contains(&[1, 0xff, 0xff]));
    }
}
