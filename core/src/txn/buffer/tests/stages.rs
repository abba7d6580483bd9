//! Stages, checkpoints, history, and what flags make of them.

use super::FlagOp::*;
use super::*;

#[test]
fn discard() {
    let mut buffer = MemBuffer::new();
    let base = fill(&mut buffer, 0..10_000, 0);
    let size = buffer.size();
    let stage = fill(&mut buffer, 0..10_000, 1);
    buffer.cleanup(stage).unwrap();
    assert_eq!((buffer.len(), buffer.size()), (10_000, size));
    check_pairs(&buffer, (0..10_000).map(|i| (i, i)));
    buffer.cleanup(base).unwrap();
    assert_eq!((buffer.len(), buffer.size()), (0, 0));
    check_pairs(&buffer, std::iter::empty());
    assert!(buffer.iter(vec![0xFF]..).next().is_none());
}

#[test]
fn flush_overwrite() {
    let mut buffer = filled(10_000);
    let size = buffer.size();
    let stage = fill(&mut buffer, 0..10_000, 1);
    buffer.release(stage).unwrap();
    assert_eq!((buffer.len(), buffer.size()), (10_000, size));
    check_pairs(&buffer, (0..10_000).map(|i| (i, i + 1)));
}

#[test]
fn complex_update() {
    let mut buffer = filled(6000);
    assert_eq!(buffer.len(), 6000);
    let stage = fill(&mut buffer, 3000..9000, 1);
    buffer.release(stage).unwrap();
    assert_eq!(buffer.len(), 9000);
    check_pairs(
        &buffer,
        (0..9000).map(|i| (i, if i < 3000 { i } else { i + 1 })),
    );
}

#[test]
fn nested_sandbox() {
    let mut buffer = MemBuffer::new();
    let h0 = fill(&mut buffer, 0..200, 0);
    let h1 = fill(&mut buffer, 0..100, 1);
    let h2 = fill(&mut buffer, 50..150, 2);
    let h3 = fill(&mut buffer, 100..120, 3);
    let h4 = fill(&mut buffer, 0..150, 4);
    buffer.cleanup(h4).unwrap();
    buffer.release(h3).unwrap();
    buffer.cleanup(h2).unwrap();
    buffer.release(h1).unwrap();
    buffer.release(h0).unwrap();
    check_pairs(
        &buffer,
        (0..200).map(|i| (i, if i < 100 { i + 1 } else { i })),
    );
}

#[test]
fn mem_db_staging() {
    let mut buffer = MemBuffer::new();
    buffer.set(b"x", &[1; 2]).unwrap();
    let h1 = buffer.staging();
    buffer.set(b"x", &[1; 3]).unwrap();
    let h2 = buffer.staging();
    buffer.set(b"yz", &[1; 1]).unwrap();
    assert_eq!(buffer.get(b"x").unwrap().unwrap().len(), 3);
    buffer.release(h2).unwrap();
    assert_eq!(buffer.get(b"yz").unwrap().unwrap().len(), 1);
    buffer.cleanup(h1).unwrap();
    assert_eq!(buffer.get(b"x").unwrap().unwrap().len(), 2);
    assert_eq!(buffer.get(b"yz").unwrap(), None);
}

#[test]
fn mem_db_multi_level_staging() {
    let mut buffer = MemBuffer::new();
    let value = |buffer: &MemBuffer| buffer.get(b"k").unwrap().unwrap()[0];
    for i in 0..100 {
        assert_eq!(buffer.staging().depth(), usize::from(i) + 1);
        buffer.set(b"k", &[i]).unwrap();
        assert_eq!(value(&buffer), i);
    }
    for i in (0..100_u8).rev() {
        let stage = StageHandle::at_depth(usize::from(i) + 1);
        if i % 2 == 1 {
            buffer.cleanup(stage).unwrap();
            assert_eq!(value(&buffer), i - 1);
        } else {
            buffer.release(stage).unwrap();
            assert_eq!(value(&buffer), i);
        }
    }
}

#[test]
fn invalid_staging_handle() {
    let at = StageHandle::at_depth;
    // Each call with two stages open: whether it succeeds, and how many are open after it.
    let table: [(&str, StageHandle, bool, usize); 8] = [
        ("release", at(3), false, 2),
        ("release", at(1), false, 2),
        ("release", StageHandle::NONE, true, 2),
        ("release", at(2), true, 1),
        ("cleanup", at(3), true, 2),
        ("cleanup", at(1), false, 2),
        ("cleanup", StageHandle::NONE, true, 2),
        ("cleanup", at(2), true, 1),
    ];
    for (call, stage, succeeds, open) in table {
        let mut buffer = MemBuffer::new();
        assert_eq!((buffer.staging(), buffer.staging()), (at(1), at(2)));
        let result = match call {
            "release" => buffer.release(stage),
            _ => buffer.cleanup(stage),
        };
        assert_eq!(result.is_ok(), succeeds, "{call} {stage:?}");
        assert_eq!(buffer.stage_depth(), open, "{call} {stage:?}");
        assert!(buffer.inspect_stage(at(3)).is_err() && buffer.inspect_stage(at(0)).is_err());
    }
    assert!(MemBuffer::new().release(at(1)).is_err());
}

#[test]
fn inspect_stage() {
    let mut buffer = MemBuffer::new();
    let h1 = fill(&mut buffer, 0..1000, 0);
    let h2 = fill(&mut buffer, 500..1000, 1);
    for i in 500..1500 {
        // Of another length, so that it is not overwritten in place.
        buffer.set(&n(i), &[&n(i + 2)[..], b"!"].concat()).unwrap();
    }
    let h3 = fill(&mut buffer, 1000..2000, 3);
    buffer.update_flags(b"only flags", &[SetKeyLocked]).unwrap();

    let inspect = |buffer: &MemBuffer, stage| -> Vec<(u32, u32)> {
        let number = |bytes: &[u8]| u32::from_be_bytes(*bytes.first_chunk().unwrap());
        let entries = buffer.inspect_stage(stage).unwrap();
        let mut seen: Vec<_> = entries
            .map(|entry| (number(entry.key()), number(entry.value().unwrap())))
            .collect();
        seen.sort_unstable();
        seen
    };
    let add = |i: u32, base: u32| (i, i + base);
    let expected: Vec<_> = (1000..2000).map(|i| add(i, 3)).collect();
    assert_eq!(inspect(&buffer, h3), expected);
    let expected: Vec<_> = (500..2000)
        .map(|i| add(i, if i < 1000 { 2 } else { 3 }))
        .collect();
    assert_eq!(inspect(&buffer, h2), expected);
    buffer.cleanup(h3).unwrap();
    buffer.release(h2).unwrap();
    let expected: Vec<_> = (0..1500)
        .map(|i| add(i, if i < 500 { 0 } else { 2 }))
        .collect();
    assert_eq!(inspect(&buffer, h1), expected);
    buffer.release(h1).unwrap();

    let stage = buffer.staging();
    buffer.set(b"a", b"1").unwrap();
    buffer.delete_with_flags(b"b", &[SetKeyLocked]).unwrap();
    let order: Vec<_> = buffer
        .inspect_stage(stage)
        .unwrap()
        .map(|entry| (entry.key(), entry.is_delete(), entry.flags()))
        .collect();
    assert_eq!(
        order,
        [
            (&b"b"[..], true, KeyFlags::LOCKED),
            (b"a", false, KeyFlags::EMPTY)
        ]
    );
}

#[test]
fn dirty() {
    type Fill = fn(&mut MemBuffer) -> Result<()>;
    let set: Fill = |buffer| buffer.set(&[1], &[1]);
    let lock: Fill = |buffer| buffer.set_with_flags(&[1], &[1], &[SetKeyLocked]);
    let presume: Fill = |buffer| buffer.set_with_flags(&[1], &[1], &[SetPresumeKeyNotExists]);
    let flags: Fill = |buffer| buffer.update_flags(&[1], &[SetPresumeKeyNotExists]);
    let nothing: Fill = |_| Ok(());
    let undo: fn(&mut MemBuffer, StageHandle) -> Result<()> = MemBuffer::cleanup;
    let keep: fn(&mut MemBuffer, StageHandle) -> Result<()> = MemBuffer::release;
    for (write, end, dirty) in [
        (set, undo, false),
        (set, keep, true),
        (lock, undo, true),
        (presume, undo, false),
        (flags, keep, false),
        (nothing, keep, false),
    ] {
        let mut buffer = MemBuffer::new();
        let stage = buffer.staging();
        write(&mut buffer).unwrap();
        end(&mut buffer, stage).unwrap();
        assert_eq!(buffer.is_dirty(), dirty);
    }
    for write in [set, lock, presume, flags] {
        let mut buffer = MemBuffer::new();
        let start = buffer.checkpoint();
        write(&mut buffer).unwrap();
        assert!(buffer.is_dirty(), "outside of a stage every write counts");
        buffer.revert_to(start).unwrap();
        assert!(buffer.is_dirty());
    }
    // A stage inside another does not count until the outer one is released.
    let mut buffer = MemBuffer::new();
    let outer = buffer.staging();
    let inner = buffer.staging();
    set(&mut buffer).unwrap();
    buffer.release(inner).unwrap();
    assert!(!buffer.is_dirty());
    buffer.release(outer).unwrap();
    assert!(buffer.is_dirty());
}

#[test]
fn flags() {
    let mut buffer = MemBuffer::new();
    let stage = buffer.staging();
    for i in 0..10_000 {
        let ops = [SetPresumeKeyNotExists, SetKeyLocked];
        let ops = if i % 2 == 0 { &ops[..] } else { &ops[..1] };
        buffer.set_with_flags(&n(i), &n(i), ops).unwrap();
    }
    buffer.cleanup(stage).unwrap();
    for i in 0..10_000 {
        assert_eq!(buffer.get(&n(i)).unwrap(), None);
        assert_eq!(
            buffer.flags(&n(i)),
            (i % 2 == 0).then_some(KeyFlags::LOCKED)
        );
    }
    assert_eq!((buffer.len(), buffer.size()), (5000, 20_000));
    assert!(buffer.iter(..).next().is_none());
    let even: Vec<[u8; 4]> = (0..10_000).step_by(2).map(n).collect();
    assert!(
        buffer
            .iter_with_flags(..)
            .map(|entry| entry.key())
            .eq(&even)
    );
    assert!(
        buffer
            .iter_with_flags(..)
            .rev()
            .map(|entry| entry.key())
            .eq(even.iter().rev())
    );
    assert!(buffer.iter_with_flags(..).all(|entry| !entry.has_value()));

    for i in 0..10_000 {
        buffer.update_flags(&n(i), &[DelKeyLocked]).unwrap();
    }
    for i in 0..10_000 {
        assert_eq!(buffer.get(&n(i)).unwrap(), None);
        assert_eq!(
            buffer.flags(&n(i)),
            Some(KeyFlags::EMPTY),
            "a missing key is made"
        );
    }
}

#[test]
fn cleanup_keep_persistent_flag() {
    let mut buffer = MemBuffer::new();
    let stage = buffer.staging();
    buffer.set_with_flags(&[1], &[1], &[SetKeyLocked]).unwrap();
    buffer
        .set_with_flags(&[2], &[2], &[SetPresumeKeyNotExists])
        .unwrap();
    buffer
        .set_with_flags(&[3], &[3], &[SetKeyLocked, SetPresumeKeyNotExists])
        .unwrap();
    buffer.cleanup(stage).unwrap();
    for (key, flags) in [
        (1, Some(KeyFlags::LOCKED)),
        (2, None),
        (3, Some(KeyFlags::LOCKED)),
    ] {
        assert_eq!(buffer.get(&[key]).unwrap(), None);
        assert_eq!(buffer.flags(&[key]), flags);
    }
}

/// What is left of one key after a few calls.
#[test]
fn traces() {
    type Trace = fn(&mut MemBuffer) -> Result<()>;
    let presumed = KeyFlags::EMPTY.apply(&[SetPresumeKeyNotExists]);
    let constraint = KeyFlags::NEED_CONSTRAINT_CHECK_IN_PREWRITE;
    let none = KeyFlags::EMPTY;
    type Left = (Option<&'static [u8]>, Option<KeyFlags>, usize, usize, bool);
    let table: [(&str, Trace, Left); 7] = [
        (
            "flags of a key with a value stay",
            |b| {
                b.set_with_flags(b"k", b"v", &[SetPresumeKeyNotExists])?;
                let stage = b.staging();
                b.set(b"k", b"v2")?;
                b.cleanup(stage)
            },
            (Some(b"v"), Some(presumed), 1, 2, true),
        ),
        (
            "persistent flags outlive a first value",
            |b| {
                let stage = b.staging();
                b.set_with_flags(b"k", b"v", &[SetKeyLocked, SetPresumeKeyNotExists])?;
                b.cleanup(stage)
            },
            (None, Some(KeyFlags::LOCKED), 1, 1, true),
        ),
        (
            "other flags from before do not",
            |b| {
                b.update_flags(b"k", &[SetPresumeKeyNotExists])?;
                let stage = b.staging();
                b.set(b"k", b"v")?;
                b.cleanup(stage)
            },
            (None, None, 0, 0, true),
        ),
        (
            "flags without value are not undone",
            |b| {
                let stage = b.staging();
                b.update_flags(b"k", &[SetPresumeKeyNotExists])?;
                b.cleanup(stage)
            },
            (None, Some(presumed), 1, 1, false),
        ),
        (
            "flags set in a stage on a key with a value stay",
            |b| {
                b.set(b"k", b"v")?;
                let stage = b.staging();
                b.set_with_flags(b"k", b"2", &[SetNeedConstraintCheckInPrewrite])?;
                b.cleanup(stage)
            },
            (Some(b"v"), Some(constraint), 1, 2, true),
        ),
        (
            "a deletion is a value",
            |b| {
                let stage = b.staging();
                b.delete(b"k")?;
                b.release(stage)
            },
            (Some(b""), Some(none), 1, 1, true),
        ),
        (
            "what a checkpoint has seen is not overwritten",
            |b| {
                b.set(b"k", b"v")?;
                let checkpoint = b.checkpoint();
                b.set(b"k", b"2")?;
                b.revert_to(checkpoint)
            },
            (Some(b"v"), Some(none), 1, 2, true),
        ),
    ];
    for (what, trace, (value, flags, len, size, dirty)) in table {
        let mut buffer = MemBuffer::new();
        trace(&mut buffer).unwrap();
        assert_eq!(buffer.get_ref(b"k").unwrap(), value, "{what}");
        assert_eq!(buffer.flags(b"k"), flags, "{what}");
        assert_eq!((buffer.len(), buffer.size()), (len, size), "{what}");
        assert_eq!(buffer.is_dirty(), dirty, "{what}");
    }
}

#[test]
fn mem_db_checkpoint() {
    let mut buffer = MemBuffer::new();
    let cp1 = buffer.checkpoint();
    buffer.set(b"x", b"x").unwrap();
    let cp2 = buffer.checkpoint();
    buffer.set(b"y", b"y").unwrap();
    let stage = buffer.staging();
    buffer.set(b"z", b"z").unwrap();
    buffer.release(stage).unwrap();
    assert_eq!(keys(buffer.iter(..)), [b"x", b"y", b"z"]);
    buffer.revert_to(cp2).unwrap();
    assert_eq!(keys(buffer.iter(..)), [b"x"]);
    buffer.revert_to(cp1).unwrap();
    assert_eq!(keys(buffer.iter_with_flags(..)), [b""; 0]);
}

#[test]
fn a_checkpoint_that_is_gone_is_refused() {
    let mut buffer = MemBuffer::new();
    let start = buffer.checkpoint();
    buffer.set(b"a", b"1").unwrap();
    let later = buffer.checkpoint();
    buffer.revert_to(start).unwrap();
    assert!(buffer.revert_to(later).is_err());
    buffer.set(b"b", b"1").unwrap();
    assert!(
        buffer.revert_to(later).is_err(),
        "the same position is another moment"
    );
    let stage = buffer.staging();
    buffer.set(b"c", b"1").unwrap();
    assert!(buffer.revert_to(start).is_err(), "a stage is open");
    let inside = buffer.checkpoint();
    buffer.set(b"d", b"1").unwrap();
    buffer.revert_to(inside).unwrap();
    buffer.revert_to(inside).unwrap();
    buffer.cleanup(stage).unwrap();
    assert!(buffer.revert_to(inside).is_err());
    assert_eq!(keys(buffer.iter(..)), [b"b"]);
    buffer.revert_to(start).unwrap();
    buffer.reset();
    assert!(buffer.revert_to(start).is_err());
}

#[test]
fn select_value_history() {
    let mut buffer = MemBuffer::new();
    buffer.set(b"k", &[1]).unwrap();
    let stage = buffer.staging();
    buffer.set(b"k", &[1, 1]).unwrap();
    let select = |buffer: &MemBuffer, key: &[u8], wanted: &[u8]| {
        let selected = buffer.select_value_history(key, |value| value == wanted);
        selected.unwrap().map(|value| value.to_vec())
    };
    assert_eq!(select(&buffer, b"k", &[1]), Some(vec![1]));
    assert_eq!(select(&buffer, b"k", &[1, 1]), Some(vec![1, 1]));
    assert_eq!(select(&buffer, b"k", &[1, 1, 1]), None);
    assert_eq!(buffer.history(b"absent").unwrap().count(), 0);
    assert_eq!(
        buffer.history(b"k").unwrap().collect::<Vec<_>>(),
        [&[1, 1][..], &[1]]
    );
    buffer.cleanup(stage).unwrap();
    assert_eq!(select(&buffer, b"k", &[1]), Some(vec![1]));
    assert_eq!(select(&buffer, b"k", &[1, 1]), None);
}

#[test]
fn mem_db_leaf_fragmentation() {
    let mut buffer = MemBuffer::new();
    let mut mem = None;
    for _ in 0..10 {
        let stage = buffer.staging();
        for i in 0..100 {
            buffer
                .set(i.to_string().repeat(256).as_bytes(), b"value")
                .unwrap();
        }
        assert!(buffer.mem() <= *mem.get_or_insert(buffer.mem()));
        buffer.cleanup(stage).unwrap();
        assert!(buffer.is_empty() && buffer.size() == 0);
    }
}

#[test]
fn iterate_handle() {
    let mut buffer = MemBuffer::new();
    let stage = buffer.staging();
    buffer.set(&[1], &[2]).unwrap();
    let handle = buffer.iter_with_flags(..).next().unwrap().handle();
    assert_eq!(buffer.key_by_handle(handle), Some([1].into()));
    assert_eq!(buffer.value_by_handle(handle).unwrap(), [2].as_slice());
    buffer.cleanup(stage).unwrap();
    assert_eq!(buffer.key_by_handle(handle), Some([1].into()));
    assert_eq!(buffer.value_by_handle(handle), None);
    buffer.set(&[1], &[3]).unwrap();
    assert_eq!(
        buffer.value_by_handle(handle).unwrap(),
        [3].as_slice(),
        "revived"
    );
    assert_eq!(MemBuffer::new().key_by_handle(handle), None);
}
