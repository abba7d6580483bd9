//! How each verb is done.

use std::time::Duration;

use bytes::Bytes;
use tikv_proto::metapb::PeerRole;

use super::key_text::KeyText;
use super::state::State;
use super::verb::{Outcome, Refused, Verb};
use crate::cluster::key;
use crate::cluster::load::Load;
use crate::cluster::pd::tso_service::TsoService;
use crate::cluster::region::{RegionId, StoreId};
use crate::serve::ServedCluster;

impl ServedCluster {
    /// Does something to the cluster.
    ///
    /// # Errors
    ///
    /// It can't be done; nothing has changed then.
    pub async fn control(&self, verb: Verb) -> Result<Outcome, Refused> {
        self.check_names(&verb)?;
        Ok(match verb {
            Verb::Describe {} => Outcome::State(Box::new(State::of(self))),
            Verb::Split { keys, raw } => self.split_at_keys(&keys, raw)?,
            Verb::Merge { source, target } => {
                let merged = self.with(|cluster, now_ms| cluster.merge(now_ms, source, target));
                done_if(merged, "the regions are no neighbours, or on other stores")?
            }
            Verb::TransferLeader { region, store } => {
                let led = self.transfer_leader(region, store);
                done_if(led, "the store has no peer that could lead")?
            }
            Verb::DeposeLeader { region } => {
                self.with(|cluster, _| cluster.depose_leader(region));
                Outcome::Done
            }
            Verb::Scatter { regions } => self.scatter_regions(regions),
            Verb::AddPeer {
                region,
                store,
                learner,
            } => {
                let role = match learner {
                    true => PeerRole::Learner,
                    false => PeerRole::Voter,
                };
                let id = self.with(|cluster, now_ms| cluster.add_peer(now_ms, region, store, role));
                done_if(id != 0, "the store has a peer of the region already")?
            }
            Verb::RemovePeer { region, store } => {
                let gone = self.with(|cluster, now_ms| cluster.remove_peer(now_ms, region, store));
                done_if(gone, "the store leads the region, or has no peer of it")?
            }
            Verb::AddStore {} => Outcome::Store(self.add_store().await.map_err(failed)?),
            Verb::Stop { store } => {
                self.stop_store(store).await;
                Outcome::Done
            }
            Verb::Start { store } => {
                self.start_store(store).await.map_err(failed)?;
                Outcome::Done
            }
            Verb::Restart { store } => {
                self.stop_store(store).await;
                self.start_store(store).await.map_err(failed)?;
                Outcome::Done
            }
            Verb::FailOver { store } => {
                let led = self.led_by(store);
                self.fail_over(store);
                Outcome::Regions(led)
            }
            Verb::Pause { store } => {
                self.pause_store(store);
                Outcome::Done
            }
            Verb::Resume { store } => {
                self.resume_store(store);
                Outcome::Done
            }
            Verb::Slow { store, delay_ms } => {
                self.slow_store(store, Duration::from_millis(delay_ms));
                Outcome::Done
            }
            Verb::DropReplies { store, count } => {
                self.drop_replies(store, count);
                Outcome::Done
            }
            Verb::ShuffleReplies { store, on } => {
                self.shuffle_replies(store, on);
                Outcome::Done
            }
            Verb::SlowScore { store, score } => self.with(|cluster, _| {
                if let Some(store) = cluster.store_mut(store) {
                    store.slow_score = score;
                }
                Outcome::Done
            }),
            Verb::Disk { store, room } => self.with(|cluster, _| {
                if let Some(store) = cluster.store_mut(store) {
                    store.disk = room.into();
                }
                Outcome::Done
            }),
            Verb::Load {
                store,
                read_wait_ms,
                write_wait_ms,
                scheduler_full,
                raftstore_full,
                closing,
            } => self.with(|cluster, _| {
                if let Some(store) = cluster.store_mut(store) {
                    store.load = Load {
                        read_wait_ms,
                        write_wait_ms,
                        scheduler_full,
                        raftstore_full,
                        closing,
                        ..Load::default()
                    };
                }
                Outcome::Done
            }),
            Verb::EndWrite {
                store,
                cause,
                progress,
            } => {
                self.with(|cluster, _| {
                    cluster.end_next_write(store, cause.into(), progress.into());
                });
                Outcome::Done
            }
            Verb::Refuse {
                error,
                store,
                region,
                count,
            } => self.with(|cluster, _| {
                match count {
                    0 => cluster.stop_injecting(),
                    count => cluster.inject(error.injected(store, region, count)),
                }
                Outcome::Done
            }),
            Verb::FallBehind {
                region,
                store,
                entries,
                stuck,
            } => {
                let behind = self.with(|cluster, _| {
                    let behind = cluster.lengthen_lag(region, store, entries);
                    behind && (!stuck || cluster.stall(region, store))
                });
                done_if(behind, "the store leads the region, or has no peer of it")?
            }
            Verb::CatchUp { store, region } => self.with(|cluster, _| {
                match region {
                    None => cluster.catch_up(store),
                    Some(region) => cluster.catch_up_peer(region, store),
                }
                Outcome::Done
            }),
            Verb::AdvanceSafeTs { region } => {
                let safe_ts = self.with(|cluster, now_ms| cluster.advance_safe_ts(now_ms, region));
                Outcome::SafeTs(safe_ts)
            }
            Verb::Label { store, key, value } => {
                self.with(|cluster, _| cluster.label_store(store, &key, &value));
                Outcome::Done
            }
            Verb::Offline { store } => {
                let offline = self.with(|cluster, _| cluster.take_offline(store));
                done_if(offline, "the store is not in service")?
            }
            Verb::Online { store } => {
                let online = self.with(|cluster, _| cluster.take_online(store));
                done_if(online, "the store is not offline")?
            }
            Verb::Bury { store } => {
                let buried = self.with(|cluster, now_ms| cluster.bury_store(now_ms, store));
                let outcome = done_if(buried, "the store is not offline, or holds a last peer")?;
                self.stop_store(store).await;
                outcome
            }
            Verb::ForgetTombstones {} => {
                self.with(|cluster, _| cluster.forget_tombstones());
                Outcome::Done
            }
            Verb::AdvanceGc { safe_point } => self.with(|cluster, now_ms| {
                let pd = cluster.pd_mut();
                let target = safe_point.unwrap_or_else(|| pd.next_tso(now_ms));
                let moved = pd.advance_safe_points(now_ms, target);
                pd.etcd_tell_safe_points();
                moved.map(Outcome::SafePoint).map_err(Refused::Forbidden)
            })?,
            Verb::CollectGarbage {} => {
                let safe_point = self.with(|cluster, _| cluster.collect_to_safe_points());
                Outcome::SafePoint(safe_point)
            }
            Verb::JumpTso { by_ms } => self.with(|cluster, now_ms| {
                let pd = cluster.pd_mut();
                let physical_ms = pd.next_tso(now_ms) >> 18;
                pd.jump_tso(physical_ms.saturating_add(by_ms));
                Outcome::Done
            }),
            Verb::LeadPd { member } => {
                self.lead_pd(member);
                Outcome::Done
            }
            Verb::TsoService { on, primary } => self.with(|cluster, now_ms| {
                let service = on.then_some(TsoService { primary });
                cluster.pd_mut().set_tso_service(now_ms, service);
                Outcome::Done
            }),
            Verb::LagPd { on } => {
                self.with(|cluster, _| cluster.pd_mut().hold_followers(on));
                Outcome::Done
            }
            Verb::RefusePd { count } => {
                self.with(|cluster, _| cluster.pd_mut().refuse_requests(count));
                Outcome::Done
            }
            Verb::PausePd { member, on } => {
                self.pause_pd(member, on);
                Outcome::Done
            }
            Verb::StopPd { member } => {
                self.stop_pd_member(member).await;
                Outcome::Done
            }
            Verb::StartPd { member } => {
                self.start_pd_member(member).await.map_err(failed)?;
                Outcome::Done
            }
            Verb::CreateKeyspace { name, config } => {
                let id =
                    self.with(|cluster, now_ms| cluster.create_keyspace(now_ms, &name, config));
                Outcome::Keyspace(id.map_err(Refused::Forbidden)?)
            }
            Verb::Save { file } => {
                self.save(file).map_err(failed)?;
                Outcome::Done
            }
        })
    }

    /// Refuses a verb about something that is not there.
    fn check_names(&self, verb: &Verb) -> Result<(), Refused> {
        let (regions, store, member) = names(verb);
        self.with(|cluster, _| {
            let missing = regions.into_iter().find(|id| cluster.region(*id).is_none());
            if let Some(region) = missing {
                return Err(Refused::NoRegion(region));
            }
            if let Some(store) = store.filter(|id| cluster.store(*id).is_none()) {
                return Err(Refused::NoStore(store));
            }
            let members = cluster.pd().members().len();
            match member.filter(|member| *member >= members) {
                Some(member) => Err(Refused::NoMember(member)),
                None => Ok(()),
            }
        })
    }

    fn split_at_keys(&self, keys: &[KeyText], raw: bool) -> Result<Outcome, Refused> {
        let encode = |text: &KeyText| {
            let key = text
                .to_bytes()
                .ok_or_else(|| Refused::NoKey(text.clone()))?;
            Ok(if raw { key } else { key::encode(&key) })
        };
        let keys: Vec<Bytes> = keys.iter().map(encode).collect::<Result<_, _>>()?;
        let created = self.with(|cluster, now_ms| {
            let mut created = Vec::new();
            for key in keys {
                if let Some(region) = cluster.regions().find(&key) {
                    let id = region.meta.id;
                    let parts = cluster.split(now_ms, id, &[key]);
                    created.extend(parts.into_iter().filter(|part| *part != id));
                }
            }
            created
        });
        Ok(Outcome::Regions(created))
    }

    fn scatter_regions(&self, regions: Vec<RegionId>) -> Outcome {
        let all = match regions.is_empty() {
            true => self.regions(),
            false => regions,
        };
        self.with(|cluster, now_ms| {
            let leader = |cluster: &crate::cluster::Cluster, id| {
                cluster.region(id).and_then(|region| region.leader)
            };
            let before: Vec<_> = all.iter().map(|id| (*id, leader(cluster, *id))).collect();
            cluster.scatter(now_ms, &all);
            let moved = before
                .into_iter()
                .filter(|(id, was)| leader(cluster, *id) != *was);
            Outcome::Regions(moved.map(|(id, _)| id).collect())
        })
    }

    fn led_by(&self, store: StoreId) -> Vec<RegionId> {
        self.with(|cluster, _| {
            let led = cluster.regions().iter().filter(|r| r.leader == Some(store));
            led.map(|region| region.meta.id).collect()
        })
    }
}

fn done_if(done: bool, otherwise: &str) -> Result<Outcome, Refused> {
    match done {
        true => Ok(Outcome::Done),
        false => Err(Refused::Forbidden(otherwise.to_owned())),
    }
}

fn failed(error: std::io::Error) -> Refused {
    Refused::Failed(error.to_string())
}

/// The regions, the store and the member of PD that a verb names.
fn names(verb: &Verb) -> (Vec<RegionId>, Option<StoreId>, Option<usize>) {
    match *verb {
        Verb::Merge { source, target } => (vec![source, target], None, None),
        Verb::DeposeLeader { region } | Verb::AdvanceSafeTs { region } => {
            (vec![region], None, None)
        }
        // The region may have been merged since.
        Verb::CatchUp { store, .. } => (Vec::new(), Some(store), None),
        Verb::Refuse { store, region, .. } => (region.into_iter().collect(), store, None),
        Verb::Scatter { ref regions } => (regions.clone(), None, None),
        Verb::TransferLeader { region, store }
        | Verb::AddPeer { region, store, .. }
        | Verb::FallBehind { region, store, .. }
        | Verb::RemovePeer { region, store } => (vec![region], Some(store), None),
        Verb::Stop { store }
        | Verb::Start { store }
        | Verb::Restart { store }
        | Verb::FailOver { store }
        | Verb::Pause { store }
        | Verb::Resume { store }
        | Verb::Slow { store, .. }
        | Verb::DropReplies { store, .. }
        | Verb::ShuffleReplies { store, .. }
        | Verb::SlowScore { store, .. }
        | Verb::Disk { store, .. }
        | Verb::Load { store, .. }
        | Verb::EndWrite { store, .. }
        | Verb::Label { store, .. }
        | Verb::Offline { store }
        | Verb::Online { store }
        | Verb::Bury { store } => (Vec::new(), Some(store), None),
        Verb::LeadPd { member }
        | Verb::TsoService {
            primary: member, ..
        } => (Vec::new(), None, member),
        Verb::PausePd { member, .. } | Verb::StopPd { member } | Verb::StartPd { member } => {
            (Vec::new(), None, Some(member))
        }
        Verb::Describe {}
        | Verb::Split { .. }
        | Verb::AddStore {}
        | Verb::ForgetTombstones {}
        | Verb::AdvanceGc { .. }
        | Verb::CollectGarbage {}
        | Verb::LagPd { .. }
        | Verb::RefusePd { .. }
        | Verb::JumpTso { .. }
        | Verb::CreateKeyspace { .. }
        | Verb::Save { .. } => (Vec::new(), None, None),
    }
}
