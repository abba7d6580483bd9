//! Who answers a [`World`](crate::world::World): a simulated cluster, as honest as the script lets
//! it be.
//!
//! Each request takes a byte of the script, which says what becomes of it: it is served; it is
//! lost, or its answer is; the cluster changes first; the answer is damaged, empty, of another
//! kind, a region error, a key error, or bytes that the script provides. After the last byte
//! everything is served, or refused for good, and what is pending must end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tikv_core::Timestamp;
use tikv_core::driver::{Endpoint, Instant, Rpc, TransportError, TsoRequest};
use tikv_core::wire::{Command, Response, encode};
use tikv_io_mock::cluster::{Cluster, Config};
use tikv_io_mock::dispatch;
use tikv_proto::{errorpb, kvrpcpb, metapb, pdpb};

use crate::script::Script;

/// The wall clock at the start of a run, in milliseconds.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// A cluster and the script.
#[derive(Debug)]
pub struct Server {
    cluster: Cluster,
    script: Script,
    /// Whether the script has begun.
    is_faulty: bool,
    /// Whether, after the script, nobody can be reached.
    ends_in_silence: bool,
    addresses: BTreeMap<Arc<str>, u64>,
    members: BTreeMap<Arc<str>, usize>,
}

type Answer = Result<Response, TransportError>;

impl Server {
    /// Three stores, two members of PD, and a region per key that the script splits off.
    pub fn new(mut script: Script) -> Self {
        let config = Config {
            pd_members: 2,
            ..Config::default()
        };
        let mut cluster = Cluster::new(config, EPOCH_MS);
        let drawn = script.byte_or_zero();
        let splits: Vec<Bytes> = ["b", "d"].map(|key| encode(key.as_bytes())).to_vec();
        let first = cluster.regions().ids().next();
        if let Some(first) = first.filter(|_| drawn & 1 == 1) {
            cluster.split(EPOCH_MS, first, &splits);
        }
        let addresses = cluster
            .store_ids()
            .filter_map(|id| Some((Arc::from(cluster.store(id)?.meta.address.as_str()), id)))
            .collect();
        let members = cluster.pd().members().iter().enumerate();
        let members = members
            .flat_map(|(place, member)| {
                member
                    .client_urls
                    .iter()
                    .map(move |url| (Arc::from(url.as_str()), place))
            })
            .collect();
        let ends_in_silence = drawn & 2 == 2;
        Server {
            cluster,
            script,
            is_faulty: false,
            ends_in_silence,
            addresses,
            members,
        }
    }

    /// Where PD is.
    pub fn pd_urls(&self) -> Vec<String> {
        self.members.keys().map(|url| url.to_string()).collect()
    }

    /// From now on the script decides.
    pub fn begin_faults(&mut self) {
        self.is_faulty = true;
    }

    /// When an answer that is given now arrives.
    pub fn arrival(&mut self, now: Instant) -> Instant {
        let millis = match self.fate() {
            Some(byte @ 0xF0..) => u64::from(byte & 0x0F) * 4_000,
            Some(byte) => u64::from(byte & 3),
            None => 1,
        };
        now + Duration::from_millis(millis)
    }

    /// Whether a driver that has gone wrong hands this answer in twice.
    pub fn answers_twice(&mut self) -> bool {
        self.fate().is_some_and(|byte| byte & 0x1F == 0x1F)
    }

    /// The next byte of the script, `None` before it has begun and after its end.
    fn fate(&mut self) -> Option<u8> {
        if self.is_faulty {
            self.script.byte()
        } else {
            None
        }
    }

    fn is_silent(&self) -> bool {
        self.is_faulty && self.ends_in_silence
    }

    /// Answers a request.
    pub fn answer(&mut self, now: Instant, rpc: &Rpc) -> Answer {
        let address = rpc.endpoint.address();
        let Some(fate) = self.fate() else {
            return if self.is_silent() {
                Err(refused(address))
            } else {
                self.serve(now, rpc)
            };
        };
        match fate % 20 {
            0..=6 => self.serve(now, rpc),
            7 => Err(refused(address)),
            8 => Err(TransportError::Deadline {
                address: address.clone(),
                sent: fate & 64 != 0,
            }),
            9 => {
                let _ = self.serve(now, rpc);
                let message = "the answer is lost".into();
                Err(TransportError::Broken {
                    address: address.clone(),
                    message,
                    sent: true,
                })
            }
            10 => {
                let code = u32::from(self.script.byte_or_zero()) % 18;
                let message = (*self.script.pick(&WORDS)).into();
                Err(TransportError::Status {
                    address: address.clone(),
                    code,
                    message,
                })
            }
            11 => Err(TransportError::Closed {
                sent: fate & 64 != 0,
            }),
            12 => {
                let len = usize::from(self.script.byte_or_zero());
                let bytes = Bytes::copy_from_slice(self.script.take(len));
                read(rpc, bytes)
            }
            13 => read(rpc, Bytes::new()),
            14 => Ok(Response::GetMembers(pdpb::GetMembersResponse::default())),
            15 => {
                let error = self.region_error();
                read(rpc, in_field_one(&error.encode_to_vec()))
            }
            16 => {
                let error = self.key_error(rpc);
                Ok(with_key_error(&rpc.command, error))
            }
            17 => {
                let honest = self.serve(now, rpc)?;
                self.damage(rpc, &honest)
            }
            _ => {
                self.change(now, fate);
                self.serve(now, rpc)
            }
        }
    }

    /// Answers a wish for a timestamp.
    pub fn timestamp(
        &mut self,
        now: Instant,
        wish: &TsoRequest,
    ) -> Result<Timestamp, TransportError> {
        let honest = Timestamp::from_u64(self.cluster.pd_mut().next_tso(millis(now)));
        let Some(fate) = self.fate() else {
            return if self.is_silent() {
                Err(refused(&wish.url))
            } else {
                Ok(honest)
            };
        };
        match fate % 16 {
            0 => Err(refused(&wish.url)),
            1 => Err(TransportError::Deadline {
                address: wish.url.clone(),
                sent: true,
            }),
            2 => Ok(Timestamp::from_u64(self.script.number())),
            3 => Ok(Timestamp::ZERO),
            4 => Ok(Timestamp::MAX),
            // A day later: every lock has expired.
            5 => Ok(Timestamp::new(honest.physical_ms() + 86_400_000, 0)),
            _ => Ok(honest),
        }
    }

    /// What an honest cluster answers.
    fn serve(&mut self, now: Instant, rpc: &Rpc) -> Answer {
        let address = rpc.endpoint.address();
        let mut command = Command::clone(&rpc.command);
        if let Some(context) = &rpc.context {
            command.set_context(context.clone());
        }
        let now_ms = millis(now);
        let answer = match &rpc.endpoint {
            Endpoint::Store { .. } => match self.addresses.get(address) {
                Some(&store) => dispatch::store(&mut self.cluster, now_ms, store, command),
                None => return Err(refused(address)),
            },
            _ => match self.members.get(address) {
                Some(&member) => dispatch::pd(&mut self.cluster, now_ms, member, command),
                None => return Err(refused(address)),
            },
        };
        answer.map_err(|error| TransportError::Status {
            address: address.clone(),
            code: 14,
            message: error.message.into(),
        })
    }

    /// The cluster is no longer what the client thinks.
    fn change(&mut self, now: Instant, fate: u8) {
        let now_ms = millis(now);
        let regions: Vec<u64> = self.cluster.regions().ids().collect();
        let stores: Vec<u64> = self.cluster.store_ids().collect();
        let region = *self.script.pick(&regions);
        let store = *self.script.pick(&stores);
        match fate / 20 % 6 {
            0 => {
                let key = encode(self.script.pick(&KEYS).as_bytes());
                self.cluster.split(now_ms, region, &[key]);
            }
            1 => {
                let other = *self.script.pick(&regions);
                self.cluster.merge(now_ms, region, other);
            }
            2 => {
                self.cluster.transfer_leader(now_ms, region, store);
            }
            3 => self.cluster.depose_leader(region),
            4 => {
                self.cluster.elect(now_ms, region, store);
            }
            _ if self.cluster.is_up(store) => self.cluster.stop_store(store),
            _ => self.cluster.start_store(now_ms, store),
        }
    }

    fn region_error(&mut self) -> errorpb::Error {
        let mut error = errorpb::Error {
            message: (*self.script.pick(&WORDS)).into(),
            ..errorpb::Error::default()
        };
        let region_id = self.script.number() % 4;
        match self.script.byte_or_zero() % 20 {
            0 => {
                let leader = self.peer();
                error.not_leader = Some(errorpb::NotLeader {
                    region_id,
                    leader: Some(leader),
                });
            }
            1 => {
                error.not_leader = Some(errorpb::NotLeader {
                    region_id,
                    leader: None,
                })
            }
            2 => error.region_not_found = Some(Default::default()),
            3 => error.key_not_in_region = Some(Default::default()),
            4 | 5 => {
                let current_regions = (0..self.script.byte_or_zero() % 4)
                    .map(|_| self.region())
                    .collect();
                error.epoch_not_match = Some(errorpb::EpochNotMatch { current_regions });
            }
            6 => {
                error.server_is_busy = Some(errorpb::ServerIsBusy {
                    estimated_wait_ms: self.script.number() as u32,
                    reason: (*self.script.pick(&WORDS)).into(),
                    ..Default::default()
                });
            }
            7 => error.stale_command = Some(Default::default()),
            8 => error.store_not_match = Some(Default::default()),
            9 => error.raft_entry_too_large = Some(Default::default()),
            10 => error.max_timestamp_not_synced = Some(Default::default()),
            11 => error.read_index_not_ready = Some(Default::default()),
            12 => error.proposal_in_merging_mode = Some(Default::default()),
            13 => error.data_is_not_ready = Some(Default::default()),
            14 => error.region_not_initialized = Some(Default::default()),
            15 => error.disk_full = Some(Default::default()),
            16 => error.recovery_in_progress = Some(Default::default()),
            17 => error.is_witness = Some(Default::default()),
            18 => error.undetermined_result = Some(Default::default()),
            _ => {}
        }
        error
    }

    fn peer(&mut self) -> metapb::Peer {
        metapb::Peer {
            id: self.script.number() % 16,
            store_id: u64::from(self.script.byte_or_zero()) % 5,
            ..Default::default()
        }
    }

    fn region(&mut self) -> metapb::Region {
        let bound = |script: &mut Script| match script.byte_or_zero() % 8 {
            0 => Bytes::new(),
            1 => Bytes::from_static(b"no encoded key"),
            _ => encode(script.pick(&KEYS).as_bytes()),
        };
        metapb::Region {
            id: self.script.number() % 16,
            start_key: bound(&mut self.script),
            end_key: bound(&mut self.script),
            region_epoch: Some(metapb::RegionEpoch {
                conf_ver: self.script.number() % 4,
                version: self.script.number() % 8,
            }),
            peers: (0..self.script.byte_or_zero() % 4)
                .map(|_| self.peer())
                .collect(),
            ..Default::default()
        }
    }

    fn key_error(&mut self, rpc: &Rpc) -> kvrpcpb::KeyError {
        let key = match &*rpc.command {
            Command::Get(get) => get.key.clone(),
            Command::Commit(commit) => commit.keys.first().cloned().unwrap_or_default(),
            _ => Bytes::copy_from_slice(self.script.pick(&KEYS).as_bytes()),
        };
        let mut error = kvrpcpb::KeyError::default();
        let ts = self.script.number();
        match self.script.byte_or_zero() % 12 {
            0..=2 => {
                error.locked = Some(Box::new(kvrpcpb::LockInfo {
                    primary_lock: Bytes::copy_from_slice(self.script.pick(&KEYS).as_bytes()),
                    lock_version: ts,
                    key,
                    lock_ttl: u64::from(self.script.byte_or_zero()) << 6,
                    txn_size: self.script.number() % 40,
                    lock_type: i32::from(self.script.byte_or_zero() % 8),
                    min_commit_ts: self.script.number(),
                    ..Default::default()
                }));
            }
            3 => {
                error.conflict = Some(kvrpcpb::WriteConflict {
                    start_ts: ts,
                    conflict_ts: self.script.number(),
                    key,
                    ..Default::default()
                });
            }
            4 => error.retryable = (*self.script.pick(&WORDS)).into(),
            5 => error.abort = (*self.script.pick(&WORDS)).into(),
            6 => error.already_exist = Some(kvrpcpb::AlreadyExist { key }),
            7 => {
                error.commit_ts_expired = Some(kvrpcpb::CommitTsExpired {
                    start_ts: ts,
                    attempted_commit_ts: self.script.number(),
                    key,
                    min_commit_ts: self.script.number(),
                });
            }
            8 => {
                let primary_key = key;
                error.txn_not_found = Some(kvrpcpb::TxnNotFound {
                    start_ts: ts,
                    primary_key,
                });
            }
            9 => error.deadlock = Some(Default::default()),
            10 => error.assertion_failed = Some(Default::default()),
            _ => {}
        }
        error
    }

    /// A few bytes of an honest answer are not what they were.
    fn damage(&mut self, rpc: &Rpc, honest: &Response) -> Answer {
        let mut bytes = honest.encode().to_vec();
        for _ in 0..self.script.byte_or_zero() % 3 + 1 {
            let place = usize::from(self.script.byte_or_zero());
            let flip = self.script.byte_or_zero();
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= flip;
            }
        }
        read(rpc, bytes.into())
    }
}

/// The keys of the application, and of whatever the server makes up.
pub const KEYS: [&str; 8] = ["a", "b", "bb", "c", "d", "e", "z", "\u{7f}\u{7f}"];

/// Texts by which some errors are told from others, and one that means nothing.
const WORDS: [&str; 8] = [
    "",
    "Deadline is exceeded",
    "invalid max_ts update",
    "not leader",
    "store not found",
    "mismatch cluster id",
    "TxnLockNotFound",
    "something else",
];

fn millis(now: Instant) -> u64 {
    EPOCH_MS + now.as_millis()
}

fn refused(address: &Arc<str>) -> TransportError {
    TransportError::Connect {
        address: address.clone(),
        message: "refused".into(),
    }
}

/// The answer in `bytes`, as a driver reads it.
fn read(rpc: &Rpc, bytes: Bytes) -> Answer {
    rpc.command
        .decode_response(bytes)
        .map_err(|error| TransportError::Decode {
            address: rpc.endpoint.address().clone(),
            message: error.to_string().into(),
        })
}

/// The field in which every answer of a store has its region error, and of PD its header.
fn in_field_one(message: &[u8]) -> Bytes {
    let mut bytes = vec![0x0A];
    prost::encoding::encode_varint(message.len() as u64, &mut bytes);
    bytes.extend_from_slice(message);
    bytes.into()
}

/// An answer that says nothing but this error, where the command has a place for one.
fn with_key_error(command: &Command, error: kvrpcpb::KeyError) -> Response {
    let boxed = || Some(Box::new(error.clone()));
    match command {
        Command::Get(_) => Response::Get(kvrpcpb::GetResponse {
            error: boxed(),
            ..Default::default()
        }),
        Command::BatchGet(_) => Response::BatchGet(kvrpcpb::BatchGetResponse {
            error: boxed(),
            ..Default::default()
        }),
        Command::Scan(scan) => {
            let pair = kvrpcpb::KvPair {
                error: boxed(),
                key: scan.start_key.clone(),
                ..Default::default()
            };
            Response::Scan(kvrpcpb::ScanResponse {
                pairs: vec![pair],
                ..Default::default()
            })
        }
        Command::Prewrite(_) => Response::Prewrite(kvrpcpb::PrewriteResponse {
            errors: vec![error],
            ..Default::default()
        }),
        Command::Commit(_) => Response::Commit(kvrpcpb::CommitResponse {
            error: boxed(),
            ..Default::default()
        }),
        Command::BatchRollback(_) => Response::BatchRollback(kvrpcpb::BatchRollbackResponse {
            error: boxed(),
            ..Default::default()
        }),
        Command::CheckTxnStatus(_) => Response::CheckTxnStatus(kvrpcpb::CheckTxnStatusResponse {
            error: boxed(),
            ..Default::default()
        }),
        Command::ResolveLock(_) => Response::ResolveLock(kvrpcpb::ResolveLockResponse {
            error: boxed(),
            ..Default::default()
        }),
        other => other
            .decode_response(Bytes::new())
            .unwrap_or(Response::GetMembers(Default::default())),
    }
}
