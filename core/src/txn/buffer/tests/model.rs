//! The buffer against a map that copies all values at every stage and checkpoint.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::key::KeyRange;
use crate::txn::buffer::flags::ALL_OPS;

/// What the buffer should know of one key. Values are newest last, by number of record.
#[derive(Clone, Debug, Default, PartialEq)]
struct Cell {
    present: bool,
    flags: KeyFlags,
    values: Vec<(u32, Vec<u8>)>,
}

/// All values at a moment.
#[derive(Clone, Debug, Default)]
struct Copied {
    end: u32,
    values: BTreeMap<Vec<u8>, Vec<(u32, Vec<u8>)>>,
}

#[derive(Debug, Default)]
struct Model {
    cells: BTreeMap<Vec<u8>, Cell>,
    end: u32,
    sealed: u32,
    dirty: bool,
    stages: Vec<Copied>,
    /// With whether it can still be reverted to.
    checkpoints: Vec<(Checkpoint, Copied, bool)>,
    snapshot: Option<(BufferSnapshot, Copied, bool)>,
}

impl Model {
    fn copy(&self) -> Copied {
        let values = self
            .cells
            .iter()
            .map(|(key, cell)| (key.clone(), cell.values.clone()));
        Copied {
            end: self.end,
            values: values.filter(|(_, values)| !values.is_empty()).collect(),
        }
    }

    fn barrier(&self) -> u32 {
        let alive = self.checkpoints.iter().filter(|(.., alive)| *alive);
        let newest = alive.map(|(_, copied, _)| copied.end).max().unwrap_or(0);
        self.stages
            .last()
            .map_or(0, |stage| stage.end)
            .max(newest)
            .max(self.sealed)
    }

    fn write(&mut self, key: &[u8], value: Option<&[u8]>, ops: &[FlagOp]) {
        let barrier = self.barrier();
        if self.stages.is_empty() {
            self.dirty = true;
            self.expire_snapshot();
        }
        let cell = self.cells.entry(key.to_vec()).or_default();
        cell.present = true;
        if value.is_some() {
            cell.flags = cell
                .flags
                .apply(&[FlagOp::DelNeedConstraintCheckInPrewrite]);
        }
        cell.flags = cell.flags.apply(ops);
        self.dirty |= cell.flags.persistent() != KeyFlags::EMPTY;
        let Some(value) = value else { return };
        match cell.values.last_mut() {
            Some((number, old))
                if *number >= barrier && !old.is_empty() && old.len() == value.len() =>
            {
                *old = value.to_vec();
            }
            _ => {
                cell.values.push((self.end, value.to_vec()));
                self.end += 1;
            }
        }
    }

    fn expire_snapshot(&mut self) {
        if let Some((.., valid)) = &mut self.snapshot {
            *valid = false;
        }
    }

    fn restore(&mut self, copied: Copied) {
        for (key, cell) in &mut self.cells {
            let values = copied.values.get(key).cloned().unwrap_or_default();
            if values.is_empty() && !cell.values.is_empty() {
                cell.flags = cell.flags.persistent();
                cell.present = !cell.flags.is_empty();
            }
            cell.values = values;
        }
        self.end = copied.end;
        self.sealed = self.sealed.min(copied.end);
        for (_, taken, alive) in &mut self.checkpoints {
            *alive &= taken.end <= copied.end;
        }
    }

    fn present(&self) -> impl Iterator<Item = (&Vec<u8>, &Cell)> {
        self.cells.iter().filter(|(_, cell)| cell.present)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Set(Vec<u8>, Vec<u8>, Vec<FlagOp>),
    Delete(Vec<u8>, Vec<FlagOp>),
    Flags(Vec<u8>, Vec<FlagOp>),
    Stage,
    Release,
    Cleanup,
    Checkpoint,
    Revert(prop::sample::Index),
    Snapshot,
    Seal,
    Scan(Vec<u8>, Option<Vec<u8>>, usize),
}

fn some_key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => vec(prop::sample::select(vec![0u8, b'a', b'b', 0xFF]), 0..4),
        // Long shared prefixes, where an index that cuts them may go wrong.
        2 => vec(prop::sample::select(vec![0u8, b'a']), 0..4)
            .prop_map(|tail| [&b"a table with a long name/"[..], &tail].concat()),
        1 => vec(prop::sample::select(vec![0u8, 1]), 0..12),
    ]
}

fn some_op() -> impl Strategy<Value = Op> {
    let value = prop_oneof![
        20 => vec(1u8..4, 1..4),
        1 => (1u8..4).prop_map(|byte| vec![byte; 1000]),
        1 => (1u8..4).prop_map(|byte| vec![byte; 5000]),
    ];
    let ops = || vec(prop::sample::select(ALL_OPS.to_vec()), 0..3);
    prop_oneof![
        12 => (some_key(), value, ops()).prop_map(|(k, v, o)| Op::Set(k, v, o)),
        4 => (some_key(), ops()).prop_map(|(k, o)| Op::Delete(k, o)),
        3 => (some_key(), ops()).prop_map(|(k, o)| Op::Flags(k, o)),
        2 => Just(Op::Stage),
        1 => Just(Op::Release),
        1 => Just(Op::Cleanup),
        1 => Just(Op::Checkpoint),
        1 => any::<prop::sample::Index>().prop_map(Op::Revert),
        1 => Just(Op::Snapshot),
        1 => Just(Op::Seal),
        3 => (some_key(), prop::option::of(some_key()), 1usize..5)
            .prop_map(|(from, to, page)| Op::Scan(from, to, page)),
    ]
}

fn apply(buffer: &mut MemBuffer, model: &mut Model, op: &Op) {
    match op {
        Op::Set(key, value, ops) => {
            if ops.is_empty() {
                buffer.set_shared(key, &value.clone().into(), &[]).unwrap();
            } else {
                buffer.set_with_flags(key, value, ops).unwrap();
            }
            model.write(key, Some(value), ops);
        }
        Op::Delete(key, ops) => {
            buffer.delete_with_flags(key, ops).unwrap();
            model.write(key, Some(&[]), ops);
        }
        Op::Flags(key, ops) => {
            buffer.update_flags(key, ops).unwrap();
            model.write(key, None, ops);
        }
        Op::Stage => {
            let stage = buffer.staging();
            let copy = model.copy();
            model.stages.push(copy);
            assert_eq!(stage.depth(), model.stages.len());
        }
        Op::Release | Op::Cleanup => {
            let Some(copied) = model.stages.pop() else {
                return;
            };
            let outermost = model.stages.is_empty();
            let stage = StageHandle::at_depth(model.stages.len() + 1);
            if matches!(op, Op::Release) {
                model.dirty |= outermost && copied.end != model.end;
                buffer.release(stage).unwrap();
            } else {
                model.restore(copied);
                buffer.cleanup(stage).unwrap();
            }
            if outermost {
                model.expire_snapshot();
            }
        }
        Op::Checkpoint => {
            let checkpoint = buffer.checkpoint();
            let copy = model.copy();
            model.checkpoints.push((checkpoint, copy, true));
        }
        Op::Revert(index) => {
            if model.checkpoints.is_empty() {
                return;
            }
            let (checkpoint, copied, alive) =
                model.checkpoints[index.index(model.checkpoints.len())].clone();
            let below_stage = model
                .stages
                .last()
                .is_some_and(|stage| copied.end < stage.end);
            let reverted = buffer.revert_to(checkpoint);
            assert_eq!(reverted.is_ok(), alive && !below_stage);
            if reverted.is_ok() {
                model.restore(copied);
                if model.stages.is_empty() {
                    model.expire_snapshot();
                }
            }
        }
        Op::Snapshot => {
            let view = model
                .stages
                .first()
                .cloned()
                .unwrap_or_else(|| model.copy());
            model.snapshot = Some((buffer.snapshot(), view, true));
        }
        Op::Seal => {
            buffer.seal();
            model.sealed = model.end;
        }
        Op::Scan(from, to, page) => check_scan(buffer, model, from, to.as_deref(), *page),
    }
}

type Pair = (Vec<u8>, Vec<u8>);

/// All pages of a cursor.
fn drain(buffer: &MemBuffer, mut cursor: Cursor, size: usize) -> Vec<Pair> {
    let mut all = Vec::new();
    while !cursor.is_finished() {
        let page = buffer.page(&mut cursor, size).unwrap();
        assert!(page.len() == size || cursor.is_finished());
        all.extend(
            page.into_iter()
                .map(|got| (got.key.to_vec(), got.value.to_vec())),
        );
    }
    all
}

fn check_scan(buffer: &MemBuffer, model: &Model, from: &[u8], to: Option<&[u8]>, size: usize) {
    let range = KeyRange::new(from, to.map(Key::from));
    let mut within: Vec<(&Vec<u8>, &Cell)> = Vec::new();
    within.extend(model.present().filter(|(key, _)| range.contains(key)));

    let with_flags = buffer.iter_with_flags(range.clone());
    let got = |entry: Entry<'_>| (entry.key().to_vec(), entry.flags(), entry.has_value());
    let expected: Vec<_> = within
        .iter()
        .map(|(key, cell)| ((*key).clone(), cell.flags, !cell.values.is_empty()))
        .collect();
    assert_eq!(with_flags.clone().map(got).collect::<Vec<_>>(), expected);
    let reversed: Vec<_> = expected.into_iter().rev().collect();
    assert_eq!(
        with_flags.clone().rev().map(got).collect::<Vec<_>>(),
        reversed
    );

    let expected: Vec<Pair> = within
        .iter()
        .filter_map(|(key, cell)| Some(((*key).clone(), cell.values.last()?.1.clone())))
        .collect();
    let got = |entry: Entry<'_>| (entry.key().to_vec(), entry.value().unwrap().to_vec());
    assert_eq!(
        buffer.iter(range.clone()).map(got).collect::<Vec<_>>(),
        expected
    );
    // From both ends towards the middle.
    let mut both = buffer.iter(range.clone());
    let (mut front, mut back) = (Vec::new(), Vec::new());
    while let Some(entry) = both.next() {
        front.push(got(entry));
        back.extend(both.next_back().map(got));
    }
    front.extend(back.into_iter().rev());
    assert_eq!(front, expected);

    for direction in [Direction::Forward, Direction::Reverse] {
        let order = |mut pairs: Vec<Pair>| {
            if direction == Direction::Reverse {
                pairs.reverse();
            }
            pairs
        };
        let pages = drain(buffer, buffer.cursor(range.clone(), direction), size);
        assert_eq!(pages, order(expected.clone()));

        let Some((snapshot, copied, true)) = &model.snapshot else {
            continue;
        };
        let seen: Vec<Pair> = copied
            .values
            .iter()
            .filter(|(key, _)| range.contains(key))
            .map(|(key, values)| (key.clone(), values.last().unwrap().1.clone()))
            .collect();
        let pages = drain(
            buffer,
            buffer.cursor_at(snapshot, range.clone(), direction),
            size,
        );
        assert_eq!(pages, order(seen.clone()));
        let pair = |(key, value): (&[u8], &[u8])| (key.to_vec(), value.to_vec());
        let iter = buffer.iter_at(snapshot, range.clone()).unwrap();
        let iterated: Vec<Pair> = match direction {
            Direction::Forward => iter.map(pair).collect(),
            Direction::Reverse => iter.rev().map(pair).collect(),
        };
        assert_eq!(iterated, order(seen));
    }
}

fn check(buffer: &MemBuffer, model: &Model) {
    for (key, cell) in &model.cells {
        let newest = cell.values.last().map(|(_, value)| value.as_slice());
        assert_eq!(buffer.get(key).unwrap().as_deref(), newest, "{key:?}");
        assert_eq!(
            buffer.flags(key),
            cell.present.then_some(cell.flags),
            "{key:?}"
        );
        let history: Vec<&[u8]> = buffer.history(key).unwrap().collect();
        let expected: Vec<&[u8]> = cell
            .values
            .iter()
            .rev()
            .map(|(_, v)| v.as_slice())
            .collect();
        assert_eq!(history, expected, "{key:?}");
        if let Some((snapshot, copied, valid)) = &model.snapshot {
            let got = buffer.get_at(snapshot, key);
            assert_eq!(got.is_ok(), *valid);
            if let Ok(value) = got {
                let then = copied
                    .values
                    .get(key)
                    .map(|values| &values.last().unwrap().1[..]);
                assert_eq!(value.as_deref(), then);
            }
        }
    }
    for (depth, stage) in model.stages.iter().enumerate() {
        let mut written: Vec<(u32, &[u8])> = Vec::new();
        for (key, cell) in &model.cells {
            let newest = cell.values.last().map(|(number, _)| *number);
            written.extend(
                newest
                    .filter(|at| *at >= stage.end)
                    .map(|at| (at, key.as_slice())),
            );
        }
        written.sort_by(|a, b| b.cmp(a));
        let stage = StageHandle::at_depth(depth + 1);
        let got = keys(buffer.inspect_stage(stage).unwrap());
        assert_eq!(
            got,
            written.into_iter().map(|(_, key)| key).collect::<Vec<_>>()
        );
    }
}

fn check_sizes(buffer: &MemBuffer, model: &Model) {
    let newest = |cell: &Cell| cell.values.last().map_or(0, |(_, value)| value.len());
    assert_eq!(buffer.len(), model.present().count());
    let size: usize = model
        .present()
        .map(|(key, cell)| key.len() + newest(cell))
        .sum();
    assert_eq!(buffer.size(), size);
    assert_eq!(buffer.is_dirty(), model.dirty);
    assert_eq!(buffer.stage_depth(), model.stages.len());
}

proptest! {
    #[test]
    fn the_buffer_is_what_a_copying_map_says(ops in vec(some_op(), 1..250)) {
        let (mut buffer, mut model) = (MemBuffer::new(), Model::default());
        for op in &ops {
            apply(&mut buffer, &mut model, op);
            check_sizes(&buffer, &model);
            if !matches!(op, Op::Set(..) | Op::Delete(..) | Op::Flags(..)) {
                check(&buffer, &model);
            }
        }
        check(&buffer, &model);
        check_scan(&buffer, &model, &[], None, 3);
    }

    /// What a stage does and keeps is what happens without it.
    #[test]
    fn a_released_stage_leaves_no_trace_in_what_is_read(
        before in vec(some_op(), 0..40), staged in vec(some_op(), 0..40),
    ) {
        let write = |op: &&Op| matches!(op, Op::Set(..) | Op::Delete(..) | Op::Flags(..));
        let (mut with, mut without) = (MemBuffer::new(), MemBuffer::new());
        let (mut model, mut ignored) = (Model::default(), Model::default());
        for op in before.iter().filter(write) {
            apply(&mut with, &mut model, op);
            apply(&mut without, &mut ignored, op);
        }
        let stage = with.staging();
        model.stages.push(model.copy());
        for op in staged.iter().filter(write) {
            apply(&mut with, &mut model, op);
            apply(&mut without, &mut ignored, op);
        }
        with.release(stage).unwrap();
        let view = |buffer: &MemBuffer| -> Vec<_> {
            buffer
                .iter_with_flags(..)
                .map(|e| (e.key().to_vec(), e.value().map(<[u8]>::to_vec), e.flags()))
                .collect()
        };
        prop_assert_eq!(view(&with), view(&without));
        prop_assert_eq!((with.len(), with.size()), (without.len(), without.size()));
    }
}
