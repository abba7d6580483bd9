//! Whether clients believe what they are told. A client that goes on sending to a region after a
//! store has told it the region's newer epoch does no wrong to the data, but would never get
//! anywhere if it had no other way out; so it is watched on the wire.
//!
//! So is how many requests one operation sends: whoever never waits gets nowhere either, and takes
//! the cluster down with it.
//!
//! What is no offence: requests that were under way when the news came, and what a client learns
//! from PD again, which may lag behind the stores.

use std::collections::BTreeMap;

use tikv_core::driver::Instant;
use tikv_core::wire::Response;
use tikv_proto::kvrpcpb::Context;
use tikv_proto::metapb::Region;

use super::network::ClientId;
use crate::check::{Verdict, Violation};
use crate::dispatch::region_error;

/// A region as a request names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Named {
    region: u64,
    version: u64,
}

impl Named {
    /// The region that a request's context names.
    pub(super) fn by(context: Option<&Context>) -> Option<Named> {
        let context = context?;
        Some(Named {
            region: context.region_id,
            version: context.region_epoch?.version,
        })
    }
}

/// A request, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asking {
    /// The operation that asks, as a number.
    pub(super) op: u64,
    pub(super) sent: Instant,
    pub(super) named: Option<Named>,
}

/// What clients were told, and what they made of it.
#[derive(Debug, Default)]
pub(super) struct Manners {
    /// What each operation was told of a region. Each by itself: news that reach an operation as
    /// it ends are lost on the others.
    told: BTreeMap<(ClientId, u64, u64), News>,
    offence: Option<Violation>,
}

#[derive(Debug, Default)]
struct News {
    version: u64,
    since: Instant,
    /// Refused requests that were sent by an older version since.
    ignored: u32,
}

/// An operation may have cut so many requests by the old region before the news came: as many as
/// a transaction of a workload has keys, if each travels alone.
const TOLERATED: u32 = 24;

/// No operation of the workloads here needs nearly as many, whatever goes wrong.
const REQUESTS_MAX: u32 = 4_000;

impl Manners {
    /// An operation of a client sends a request, and has sent so many by now.
    pub(super) fn asks(&mut self, client: ClientId, requests: u32, label: &'static str) {
        if requests > REQUESTS_MAX && self.offence.is_none() {
            let detail = format!("{label} of {client} has sent {requests} requests");
            self.offence = Some(Violation::new("no busy loop", detail));
        }
    }

    /// A client is given the answer to a request that it sent then, and that named a region so.
    pub(super) fn hears(
        &mut self,
        now: Instant,
        client: ClientId,
        asked: Asking,
        response: &Response,
    ) {
        self.forgets(client, response);
        let Asking { op, sent, named } = asked;
        let (Some(named), Some(error)) = (named, region_error(response)) else {
            return;
        };
        let Some(stale) = &error.epoch_not_match else {
            return;
        };
        let newest = stale
            .current_regions
            .iter()
            .filter(|region| region.id == named.region)
            .filter_map(|region| Some(region.region_epoch?.version))
            .max();
        let Some(version) = newest.filter(|version| *version > named.version) else {
            return;
        };
        let news = self.told.entry((client, named.region, op)).or_default();
        if named.version < news.version && sent > news.since {
            news.ignored += 1;
            if news.ignored > TOLERATED && self.offence.is_none() {
                let detail = format!(
                    "an operation of {client} has asked region {} by version {} for {} times since it was told of \
                     version {} at {} ms",
                    named.region,
                    named.version,
                    news.ignored,
                    news.version,
                    news.since.as_millis()
                );
                self.offence = Some(Violation::new("news are believed", detail));
            }
        }
        if version > news.version {
            *news = News {
                version,
                since: now,
                ignored: 0,
            };
        }
    }

    /// PD, which may lag behind, makes a client believe the old again.
    fn forgets(&mut self, client: ClientId, response: &Response) {
        let mut believes = |region: Option<&Region>| {
            let Some(region) = region else { return };
            let version = region.region_epoch.map_or(0, |epoch| epoch.version);
            let told = (client, region.id, 0)..=(client, region.id, u64::MAX);
            let newer = self
                .told
                .range_mut(told)
                .filter(|(_, news)| version < news.version);
            newer.for_each(|(_, news)| *news = News::default());
        };
        match response {
            Response::GetRegion(reply)
            | Response::GetPrevRegion(reply)
            | Response::GetRegionById(reply) => believes(reply.region.as_deref()),
            Response::BatchScanRegions(reply) => {
                let regions = reply.regions.iter();
                regions.for_each(|found| believes(found.region.as_deref()));
            }
            _ => {}
        }
    }

    /// The first offence.
    pub(super) fn verdict(&self) -> Verdict {
        match &self.offence {
            None => Ok(()),
            Some(offence) => Err(offence.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tikv_proto::{errorpb, kvrpcpb, metapb, pdpb};

    const CLIENT: ClientId = ClientId(1);

    fn ms(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn named(version: u64) -> Option<Named> {
        Some(Named { region: 7, version })
    }

    fn region(version: u64) -> Region {
        Region {
            id: 7,
            region_epoch: Some(metapb::RegionEpoch {
                conf_ver: 1,
                version,
            }),
            ..Default::default()
        }
    }

    fn refusal(version: u64) -> Response {
        let error = errorpb::Error {
            epoch_not_match: Some(errorpb::EpochNotMatch {
                current_regions: vec![region(version)],
            }),
            ..Default::default()
        };
        Response::Get(kvrpcpb::GetResponse {
            region_error: Some(error.into()),
            ..Default::default()
        })
    }

    /// Tells a client of a version, and refuses requests of another one that it sends later.
    fn refused(client: ClientId, version: u64, sent_ms: u64) -> Verdict {
        let mut manners = Manners::default();
        let first = Asking {
            op: 3,
            sent: ms(1),
            named: named(4),
        };
        manners.hears(ms(5), CLIENT, first, &refusal(6));
        for _ in 0..=TOLERATED {
            assert_eq!(manners.verdict(), Ok(()));
            let again = Asking {
                op: 3,
                sent: ms(sent_ms),
                named: named(version),
            };
            manners.hears(ms(sent_ms + 1), client, again, &refusal(6));
        }
        manners.verdict()
    }

    #[test]
    fn who_ignores_the_news_is_noticed() {
        assert!(refused(CLIENT, 4, 9).is_err());
        assert!(refused(CLIENT, 5, 9).is_err());
    }

    #[test]
    fn who_never_stops_asking_is_noticed() {
        let mut manners = Manners::default();
        manners.asks(CLIENT, REQUESTS_MAX, "prewrite");
        assert_eq!(manners.verdict(), Ok(()));
        manners.asks(CLIENT, REQUESTS_MAX + 1, "prewrite");
        assert!(
            manners
                .verdict()
                .is_err_and(|offence| offence.rule == "no busy loop")
        );
    }

    #[test]
    fn what_was_under_way_or_is_up_to_date_does_not_count() {
        assert_eq!(refused(CLIENT, 4, 4), Ok(()));
        assert_eq!(refused(CLIENT, 6, 9), Ok(()));
        assert_eq!(refused(ClientId(2), 4, 4), Ok(()));
    }

    #[test]
    fn who_believes_a_stale_pd_is_excused() {
        for (version, excused) in [(4, true), (6, false)] {
            let mut manners = Manners::default();
            let asking = |sent, version| Asking {
                op: 3,
                sent: ms(sent),
                named: version,
            };
            manners.hears(ms(5), CLIENT, asking(1, named(4)), &refusal(6));
            for _ in 0..=TOLERATED {
                let reply = pdpb::GetRegionResponse {
                    region: Some(Box::new(region(version))),
                    ..Default::default()
                };
                let told = Response::GetRegion(reply);
                manners.hears(ms(7), CLIENT, asking(6, None), &told);
                manners.hears(ms(9), CLIENT, asking(8, named(4)), &refusal(6));
            }
            assert_eq!(manners.verdict().is_ok(), excused);
        }
    }
}
