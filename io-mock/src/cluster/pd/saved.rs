//! PD's part of a saved cluster.

use std::num::TryFromIntError;

use tikv_proto::keyspacepb::KeyspaceMeta;

use super::etcd::{Lease, Leases};
use super::gc::{Barrier, Barriers, GcState, GcStates, NULL_KEYSPACE};
use super::keyspaces::{Keyspaces, id_of};
use super::meta_storage::MetaStorage;
use super::operators::Operators;
use super::resource_groups::ResourceGroups;
use super::token_buckets::{Bucket, Slot};
use super::tso::Tso;
use super::tso_service::TsoService;
use super::{KnownRegion, KnownRegions, Pd};
use crate::cluster::Config;
use crate::cluster::snapshot::wire;

impl Pd {
    /// Everything PD knows, as it is saved.
    pub(in crate::cluster) fn save(&self) -> wire::Pd {
        wire::Pd {
            members: self.members.clone(),
            leader: self.leader.map(|leader| leader as u64),
            follower_handles: self.follower_handles,
            last_id: self.last_id,
            tso_physical: self.tso.physical,
            tso_logical: self.tso.logical,
            tso_saved: self.tso.saved,
            tso_service: self.tso_service.map(|service| wire::TsoService {
                primary: service.primary.map(|server| server as u64),
            }),
            tso_changes: self.tso_changes,
            regions: self.regions.iter().map(save_region).collect(),
            gc: save_gc(&self.gc),
            global_barriers: save_barriers(&self.gc.global),
            keyspaces: self.keyspaces().map(|(_, meta)| meta.clone()).collect(),
            keyspace_changes: self.keyspaces.changes.clone(),
            meta_revision: self.meta.revision,
            meta_compacted: self.meta.compacted,
            meta_entries: self.meta.entries.values().cloned().collect(),
            meta_events: self.meta.events.clone(),
            meta_leases: save_leases(&self.meta.leases),
            resource_groups: save_groups(&self.resources),
            operators: self
                .operators
                .done_at_ms
                .iter()
                .map(|(region, done_at_ms)| wire::Operator {
                    region: *region,
                    done_at_ms: *done_at_ms,
                })
                .collect(),
            external_ts: self.external_ts,
            watched: self.watched,
            too_many: self.too_many,
            followers_know: self
                .followers_know
                .as_ref()
                .map(|known| wire::KnownRegions {
                    regions: known.iter().map(save_region).collect(),
                }),
        }
    }

    /// PD as it was saved; `None` if it can't have been so.
    pub(in crate::cluster) fn load(config: &Config, saved: wire::Pd) -> Option<Self> {
        let members = saved.members;
        let leader = saved.leader.map(usize::try_from).transpose().ok()?;
        if leader.is_some_and(|leader| leader >= members.len()) {
            return None;
        }
        let mut pd = Pd {
            members,
            leader,
            follower_handles: saved.follower_handles,
            last_id: saved.last_id,
            tso: Tso {
                physical: saved.tso_physical,
                logical: saved.tso_logical,
                saved: saved.tso_saved,
            },
            tso_service: saved.tso_service.map(load_tso_service).transpose().ok()?,
            tso_changes: saved.tso_changes,
            gc: load_gc(saved.gc, saved.global_barriers),
            keyspaces: load_keyspaces(saved.keyspaces, saved.keyspace_changes),
            meta: MetaStorage {
                revision: saved.meta_revision,
                compacted: saved.meta_compacted,
                entries: saved
                    .meta_entries
                    .into_iter()
                    .map(|entry| (entry.key.clone(), entry))
                    .collect(),
                events: saved.meta_events,
                leases: load_leases(saved.meta_leases),
            },
            resources: load_groups(saved.resource_groups)?,
            operators: Operators {
                done_at_ms: saved
                    .operators
                    .into_iter()
                    .map(|operator| (operator.region, operator.done_at_ms))
                    .collect(),
            },
            external_ts: saved.external_ts,
            watched: saved.watched,
            too_many: saved.too_many,
            ..Pd::new(config)
        };
        pd.regions = load_regions(saved.regions)?;
        pd.followers_know = match saved.followers_know {
            Some(known) => Some(load_regions(known.regions)?),
            None => None,
        };
        Some(pd)
    }
}

fn load_tso_service(saved: wire::TsoService) -> Result<TsoService, TryFromIntError> {
    let primary = saved.primary.map(usize::try_from).transpose()?;
    Ok(TsoService { primary })
}

fn load_regions(saved: Vec<wire::KnownRegion>) -> Option<KnownRegions> {
    let mut regions = KnownRegions::default();
    for region in saved {
        regions.insert(KnownRegion {
            meta: region.meta?,
            leader: region.leader,
            term: region.term,
            down: region.down,
            pending: region.pending,
            buckets: region.buckets.map(Box::new),
        });
    }
    Some(regions)
}

fn save_region(known: &KnownRegion) -> wire::KnownRegion {
    wire::KnownRegion {
        meta: Some(known.meta.clone()),
        leader: known.leader,
        term: known.term,
        down: known.down.clone(),
        pending: known.pending.clone(),
        buckets: known.buckets.as_deref().cloned(),
    }
}

fn save_gc(gc: &GcStates) -> Vec<wire::Gc> {
    let own = gc.own.iter().map(|(keyspace, state)| (*keyspace, state));
    own.chain([(NULL_KEYSPACE, &gc.shared)])
        .map(|(keyspace, state)| wire::Gc {
            keyspace,
            txn_safe_point: state.txn_safe_point,
            gc_safe_point: state.gc_safe_point,
            barriers: save_barriers(&state.barriers),
            min_start_ts: state.min_start_ts.clone(),
        })
        .collect()
}

fn load_gc(saved: Vec<wire::Gc>, global: Vec<wire::Barrier>) -> GcStates {
    let mut gc = GcStates {
        global: load_barriers(global),
        ..GcStates::default()
    };
    for state in saved {
        *gc.of_mut(state.keyspace) = GcState {
            txn_safe_point: state.txn_safe_point,
            gc_safe_point: state.gc_safe_point,
            barriers: load_barriers(state.barriers),
            min_start_ts: state.min_start_ts,
        };
    }
    gc
}

fn save_barriers(barriers: &Barriers) -> Vec<wire::Barrier> {
    let barriers = barriers.iter();
    barriers
        .map(|(id, barrier)| wire::Barrier {
            id: id.clone(),
            ts: barrier.ts,
            expires_at_ms: barrier.expires_at_ms,
        })
        .collect()
}

fn load_barriers(saved: Vec<wire::Barrier>) -> Barriers {
    let saved = saved.into_iter();
    saved
        .map(|one| {
            let barrier = Barrier {
                ts: one.ts,
                expires_at_ms: one.expires_at_ms,
            };
            (one.id, barrier)
        })
        .collect()
}

fn load_keyspaces(saved: Vec<KeyspaceMeta>, changes: Vec<u32>) -> Keyspaces {
    Keyspaces {
        by_id: saved.into_iter().map(|meta| (id_of(&meta), meta)).collect(),
        changes,
    }
}

fn save_leases(leases: &Leases) -> Vec<wire::Lease> {
    let leases = leases.by_id.iter();
    leases
        .map(|(id, lease)| wire::Lease {
            id: *id,
            ttl_s: lease.ttl_s,
            ends_at_ms: lease.ends_at_ms,
        })
        .collect()
}

fn load_leases(saved: Vec<wire::Lease>) -> Leases {
    let by_id = saved.into_iter().map(|one| {
        let lease = Lease {
            ttl_s: one.ttl_s,
            ends_at_ms: one.ends_at_ms,
        };
        (one.id, lease)
    });
    Leases {
        by_id: by_id.collect(),
    }
}

fn save_groups(groups: &ResourceGroups) -> Vec<wire::ResourceGroup> {
    let groups = groups.by_name.values();
    groups
        .map(|(group, bucket)| wire::ResourceGroup {
            group: Some(group.clone()),
            settings: Some(bucket.settings),
            given_bits: bucket.given.to_bits(),
            filled_ms: bucket.filled_ms,
            slots: bucket
                .slots
                .iter()
                .map(|(client, slot)| wire::Slot {
                    client: *client,
                    token_bits: slot.tokens.to_bits(),
                    asked_ms: slot.asked_ms,
                })
                .collect(),
        })
        .collect()
}

fn load_groups(saved: Vec<wire::ResourceGroup>) -> Option<ResourceGroups> {
    let groups = saved.into_iter().map(|one| {
        let group = one.group?;
        let mut bucket = Bucket::new(one.settings?, f64::from_bits(one.given_bits));
        bucket.filled_ms = one.filled_ms;
        bucket.slots = one
            .slots
            .into_iter()
            .map(|slot| {
                let held = Slot {
                    tokens: f64::from_bits(slot.token_bits),
                    asked_ms: slot.asked_ms,
                };
                (slot.client, held)
            })
            .collect();
        Some((group.name.clone(), (group, bucket)))
    });
    Some(ResourceGroups {
        by_name: groups.collect::<Option<_>>()?,
    })
}
