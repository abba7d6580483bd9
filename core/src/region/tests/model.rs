//! The region cache against an obvious one: a list of regions, searched from end to end.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What the obvious cache keeps of a region.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    ver_id: RegionVerId,
    start: u8,
    /// 0 for no end.
    end: u8,
    invalid_since: Option<u64>,
}

impl Entry {
    fn contains(&self, key: u8) -> bool {
        key >= self.start && (self.end == 0 || key < self.end)
    }

    fn overlaps(&self, other: &Entry) -> bool {
        let before = |a: &Entry, b: &Entry| a.end == 0 || b.start < a.end;
        before(self, other) && before(other, self)
    }
}

#[derive(Debug, Default)]
struct Model {
    entries: Vec<Entry>,
}

impl Model {
    fn insert(&mut self, new: Entry, from_pd_leader: bool, now: u64) -> &'static str {
        let counts = |old: &Entry| {
            let doubted = old.invalid_since.is_some_and(|since| now - since >= 2_000);
            !(from_pd_leader && doubted)
        };
        let same_id = self
            .entries
            .iter()
            .find(|old| old.ver_id.id == new.ver_id.id);
        if let Some(old) = same_id {
            if counts(old) && new.ver_id.is_behind(old.ver_id) {
                return "stale";
            }
            if old.ver_id == new.ver_id && old.invalid_since.is_none() {
                return "kept";
            }
        }
        let newer = |old: &&Entry| old.ver_id.ver > new.ver_id.ver && counts(old);
        if self
            .entries
            .iter()
            .filter(|old| old.overlaps(&new))
            .any(|old| newer(&old))
        {
            return "stale";
        }
        let id = new.ver_id.id;
        self.entries
            .retain(|old| !old.overlaps(&new) && old.ver_id.id != id);
        self.entries.push(new);
        "added"
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert {
        id: u64,
        conf_ver: u64,
        ver: u64,
        start: u8,
        end: u8,
        invalidate_old: bool,
        from_pd_leader: bool,
    },
    Invalidate(u64),
    Collect,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Step> {
    let insert = (
        1..8_u64,
        1..4_u64,
        1..6_u64,
        0..12_u8,
        0..12_u8,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |(id, conf_ver, ver, start, end, invalidate_old, from_pd_leader)| Step::Insert {
                id,
                conf_ver,
                ver,
                start,
                end: if end <= start { 0 } else { end },
                invalidate_old,
                from_pd_leader,
            },
        );
    prop_oneof![
        12 => insert,
        3 => (1..8_u64).prop_map(Step::Invalidate),
        1 => Just(Step::Collect),
        1 => (1..3_000_u64).prop_map(Step::Wait),
    ]
}

fn bound(byte: u8) -> Key {
    if byte == 0 {
        Key::EMPTY
    } else {
        Key::from([byte])
    }
}

fn text(byte: u8) -> String {
    if byte == 0 {
        String::new()
    } else {
        char::from(byte).to_string()
    }
}

proptest! {
    #[test]
    fn the_cache_is_a_list_of_regions(steps in vec(steps(), 1..80)) {
        let stores = stores();
        let cache = RegionCache::new(Ttl { base_ms: 1_000_000, jitter_ms: 0, seed: 7 });
        let mut model = Model::default();
        let mut now = 1;
        for step in steps {
            match step {
                Step::Insert { id, conf_ver, ver, start, end, invalidate_old, from_pd_leader } => {
                    let mode = InsertMode { invalidate_old, from_pd_leader };
                    let data = data(id, &text(start), &text(end), conf_ver, ver);
                    let held: Vec<Arc<Region>> = cache.cover(&[KeyRange::all()], at(now)).regions;
                    let inserted = cache.load(data, &stores, mode, at(now)).unwrap();
                    let ver_id = RegionVerId { id, conf_ver, ver };
                    let entry = Entry { ver_id, start, end, invalid_since: None };
                    let expected = model.insert(entry, from_pd_leader, now);
                    let got = match &inserted {
                        Inserted::Added(_) => "added",
                        Inserted::Kept(_) => "kept",
                        Inserted::Stale(_) => "stale",
                    };
                    prop_assert_eq!(got, expected);
                    // Requests under way lose their region only if it is gone and they should.
                    for region in held {
                        let cached = cache.get(region.ver_id());
                        let still = cached.is_some_and(|cached| Arc::ptr_eq(&cached, &region));
                        prop_assert_eq!(region.is_valid(at(now)), still || !invalidate_old);
                    }
                }
                Step::Invalidate(id) => {
                    let entry = model.entries.iter_mut().find(|entry| entry.ver_id.id == id);
                    if let Some(entry) = entry {
                        entry.invalid_since.get_or_insert(now);
                        cache.invalidate(entry.ver_id, InvalidReason::Other, at(now));
                    }
                }
                Step::Collect => {
                    cache.collect(&Key::EMPTY, 1_000, at(now));
                    model.entries.retain(|entry| entry.invalid_since.is_none());
                }
                Step::Wait(ms) => now += ms,
            }
            prop_assert_eq!(cache.len(), model.entries.len());
        }
        for key in 0..14 {
            let expected = model
                .entries
                .iter()
                .find(|entry| entry.contains(key) && entry.invalid_since.is_none())
                .map(|entry| entry.ver_id);
            let got = match cache.lookup(&bound(key), at(now)) {
                Lookup::Hit(region) => Some(region.ver_id()),
                Lookup::Reload { .. } | Lookup::Miss(_) => None,
            };
            prop_assert_eq!(got, expected, "key {}", key);
        }
        for entry in &model.entries {
            let by_id = cache.get(entry.ver_id).map(|region| region.start().clone());
            prop_assert_eq!(by_id, Some(bound(entry.start)));
        }
        let cover = cache.cover(&[KeyRange::all()], at(now));
        let mut parts: Vec<KeyRange> = cover.regions.iter().map(|r| r.range().clone()).collect();
        parts.extend(cover.holes);
        parts.sort_by(|a, b| a.start().cmp(b.start()));
        prop_assert!(covers(&[KeyRange::all()], &parts, None));
        prop_assert!(parts.windows(2).all(|pair| pair[0].end() == Some(pair[1].start())));
    }
}
