//! A stream of watches on etcd's keys: the client begins and ends watches on it, and all of them
//! tell on the same one what has changed.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;
use tonic::{Status, Streaming};

use super::grpc::{self, Messages};
use super::pd::PdServer;
use crate::cluster::pd::etcd::messages::{WatchCreate, WatchRequest, WatchResponse, WatchWish};
use crate::cluster::pd::etcd::watch::Watcher;

/// Answers a stream.
pub(super) fn answer(server: PdServer, requests: Streaming<Bytes>) -> Messages {
    let changes = server.world.changes();
    let stream = Watches {
        server,
        requests,
        changes,
        watchers: BTreeMap::new(),
        last_id: -1,
        ready: VecDeque::new(),
    };
    grpc::unfold(stream, |mut stream| async move {
        let message = stream.next().await?;
        Ok(message.map(|message| (message, stream)))
    })
}

struct Watches {
    server: PdServer,
    requests: Streaming<Bytes>,
    changes: watch::Receiver<()>,
    watchers: BTreeMap<i64, Watcher>,
    last_id: i64,
    ready: VecDeque<WatchResponse>,
}

impl Watches {
    /// The next message, until the client ends the stream.
    async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Ok(Some(message.encode_to_vec().into()));
            }
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => {
                        self.server.impairment.admit().await;
                        self.take(WatchRequest::decode(request).map_err(grpc::unreadable)?);
                    }
                    None => return Ok(None),
                },
                changed = self.changes.changed() => match changed {
                    Ok(()) => {
                        self.server.impairment.admit().await;
                        self.look();
                    }
                    Err(_) => return Ok(None),
                },
            }
        }
    }

    fn take(&mut self, request: WatchRequest) {
        match request.wish {
            Some(WatchWish::Create(wish)) => self.begin(&wish),
            Some(WatchWish::Cancel(wish)) => self.end(wish.watch_id),
            Some(WatchWish::Progress(_)) => {
                self.look();
                let member = self.server.member;
                let world = &self.server.world;
                let told = world.with(|cluster, _| cluster.pd().etcd_progress(member));
                self.ready.push_back(told);
            }
            None => {}
        }
    }

    fn begin(&mut self, wish: &WatchCreate) {
        // Who watches wants to hear when a lease ends that others have left.
        self.server.world.end_leases_in_time();
        let taken = self.watchers.contains_key(&wish.watch_id);
        if wish.watch_id != 0 && taken {
            let mut told = self.about(-1);
            (told.created, told.canceled) = (true, true);
            told.cancel_reason = "mvcc: duplicate watch ID provided on the WatchStream".to_owned();
            self.ready.push_back(told);
            return;
        }
        let id = match wish.watch_id {
            0 => self.free_id(),
            given => given,
        };
        let begun = self.server.world.with(|cluster, _| {
            let pd = cluster.pd_mut();
            pd.etcd_tell_safe_points();
            pd.etcd_watch(id, wish)
        });
        let mut told = self.about(id);
        told.created = true;
        self.ready.push_back(told);
        self.watchers.insert(id, begun);
        self.look();
    }

    fn free_id(&mut self) -> i64 {
        loop {
            self.last_id += 1;
            if !self.watchers.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    fn end(&mut self, id: i64) {
        if self.watchers.remove(&id).is_some() {
            let mut told = self.about(id);
            told.canceled = true;
            self.ready.push_back(told);
        }
    }

    fn about(&self, watch_id: i64) -> WatchResponse {
        let (world, member) = (&self.server.world, self.server.member);
        WatchResponse {
            header: world.with(|cluster, _| cluster.pd().etcd_watch_header(member)),
            watch_id,
            ..WatchResponse::default()
        }
    }

    /// Has every watch look for what has changed.
    fn look(&mut self) {
        let (world, member) = (&self.server.world, self.server.member);
        let (watchers, ready) = (&mut self.watchers, &mut self.ready);
        world.with(|cluster, _| {
            watchers.retain(|_, watcher| {
                let told = cluster.pd().etcd_next(member, watcher);
                let lasts = told.as_ref().is_none_or(|told| !told.canceled);
                ready.extend(told);
                lasts
            });
        });
    }
}
