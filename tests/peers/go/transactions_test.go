package peers

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	tikverr "github.com/tikv/client-go/v2/error"
	"github.com/tikv/client-go/v2/kv"
	"github.com/tikv/client-go/v2/oracle"
	"github.com/tikv/client-go/v2/tikv"
	"github.com/tikv/client-go/v2/txnkv"
	"github.com/tikv/client-go/v2/txnkv/transaction"
)

func txnClient(t *testing.T, c *cluster, opts ...txnkv.ClientOpt) *txnkv.Client {
	t.Helper()
	client, err := txnkv.NewClient([]string{c.pd}, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

func begin(t *testing.T, client *txnkv.Client, opts ...tikv.TxnOption) *transaction.KVTxn {
	t.Helper()
	txn, err := client.Begin(opts...)
	require.NoError(t, err)
	return txn
}

// put writes one value to keys in a transaction of their own.
func put(t *testing.T, client *txnkv.Client, value string, keys ...string) {
	t.Helper()
	txn := begin(t, client)
	for _, key := range keys {
		require.NoError(t, txn.Set([]byte(key), []byte(value)))
	}
	require.NoError(t, txn.Commit(soon(t)))
}

// get reads a key at present; empty, if it is not there.
func get(t *testing.T, client *txnkv.Client, key string) string {
	t.Helper()
	ts, err := client.CurrentTimestamp(oracle.GlobalTxnScope)
	require.NoError(t, err)
	found, err := client.GetSnapshot(ts).Get(soon(t), []byte(key))
	if tikverr.IsErrNotFound(err) {
		return ""
	}
	require.NoError(t, err)
	return string(found.Value)
}

func TestCommitsInEveryWay(t *testing.T) {
	c := serve(t, "--regions", "5")
	client := txnClient(t, c)
	for _, way := range []struct {
		name  string
		begin func(*transaction.KVTxn)
	}{
		{"two phases", func(*transaction.KVTxn) {}},
		{"async", func(txn *transaction.KVTxn) { txn.SetEnableAsyncCommit(true) }},
		{"one phase", func(txn *transaction.KVTxn) { txn.SetEnable1PC(true) }},
		{"causal", func(txn *transaction.KVTxn) {
			txn.SetEnableAsyncCommit(true)
			txn.SetCausalConsistency(true)
		}},
		{"pessimistic", func(txn *transaction.KVTxn) { txn.SetPessimistic(true) }},
	} {
		t.Run(way.name, func(t *testing.T) {
			ctx := soon(t)
			txn := begin(t, client)
			way.begin(txn)
			keys := [][]byte{[]byte("a"), {0x80, 'b'}, {0xff, 'c'}}
			if txn.IsPessimistic() {
				lock := kv.NewLockCtx(txn.StartTS(), kv.LockAlwaysWait, time.Now())
				require.NoError(t, txn.LockKeys(ctx, lock, keys...))
			}
			for _, key := range keys {
				require.NoError(t, txn.Set(key, []byte(way.name)))
			}
			require.NoError(t, txn.Commit(ctx))
			for _, key := range keys {
				require.Equal(t, way.name, get(t, client, string(key)))
			}
			// What was before is still read there.
			before, err := client.GetSnapshot(txn.StartTS()).BatchGet(ctx, keys)
			require.NoError(t, err)
			for _, entry := range before {
				require.NotEqual(t, way.name, string(entry.Value))
			}
		})
	}
}

func TestManyKeysAreCommittedAndScannedBothWays(t *testing.T) {
	c := serve(t, "--regions", "5")
	client := txnClient(t, c)
	ctx := soon(t)
	keys := numbered("k", 10_000)
	txn := begin(t, client)
	for i, key := range keys {
		keys[i] = append([]byte{byte(i >> 6)}, key...)
		require.NoError(t, txn.Set(keys[i], key))
	}
	require.NoError(t, txn.Commit(ctx))

	ts, err := client.CurrentTimestamp(oracle.GlobalTxnScope)
	require.NoError(t, err)
	snapshot := client.GetSnapshot(ts)
	found, err := snapshot.BatchGet(ctx, keys)
	require.NoError(t, err)
	require.Len(t, found, len(keys))
	count := 0
	iterator, err := snapshot.Iter(nil, nil)
	require.NoError(t, err)
	for ; iterator.Valid(); count++ {
		require.Equal(t, keys[count], iterator.Key())
		require.NoError(t, iterator.Next())
	}
	require.Len(t, keys, count)
	iterator, err = snapshot.IterReverse([]byte{0xff}, nil)
	require.NoError(t, err)
	for ; iterator.Valid(); count-- {
		require.Equal(t, keys[count-1], iterator.Key())
		require.NoError(t, iterator.Next())
	}
	require.Zero(t, count)

	// Removed without a trace in between.
	_, err = client.DeleteRange(ctx, keys[1_000], keys[9_000], 4)
	require.NoError(t, err)
	ts, err = client.CurrentTimestamp(oracle.GlobalTxnScope)
	require.NoError(t, err)
	found, err = client.GetSnapshot(ts).BatchGet(ctx, keys)
	require.NoError(t, err)
	require.Len(t, found, 2_000)
	require.NoError(t, client.UnsafeDestroyRange(ctx, []byte{0}, []byte{0xff}))
	require.Empty(t, get(t, client, string(keys[0])))
}

func TestConflictsAreTold(t *testing.T) {
	c := serve(t)
	client := txnClient(t, c)
	txn := begin(t, client)
	require.NoError(t, txn.Set([]byte("k"), []byte("late")))
	put(t, client, "early", "k")
	err := txn.Commit(soon(t))
	require.True(t, tikverr.IsErrWriteConflict(err), "%v", err)
	require.Equal(t, "early", get(t, client, "k"))
}

// lockKey has a pessimistic transaction lock a key at the newest version there is.
func lockKey(ctx context.Context, client *txnkv.Client, txn *transaction.KVTxn, key string, waitMs int64) error {
	ts, err := client.CurrentTimestamp(oracle.GlobalTxnScope)
	if err != nil {
		return err
	}
	lock := kv.NewLockCtx(ts, waitMs, time.Now())
	return txn.LockKeys(ctx, lock, []byte(key))
}

func TestTwoClientsWaitForEachOther(t *testing.T) {
	c := serve(t, "--regions", "3")
	first, second := txnClient(t, c), txnClient(t, c)
	ctx := soon(t)
	holder := begin(t, first)
	holder.SetPessimistic(true)
	require.NoError(t, lockKey(ctx, first, holder, "k", kv.LockNoWait))

	other := begin(t, second)
	other.SetPessimistic(true)
	err := lockKey(ctx, second, other, "k", kv.LockNoWait)
	require.ErrorIs(t, err, tikverr.ErrLockAcquireFailAndNoWaitSet)
	err = lockKey(ctx, second, other, "k", 50)
	require.ErrorIs(t, err, tikverr.ErrLockWaitTimeout)

	// Who waits longer goes on as soon as the other one is done.
	locked := make(chan error, 1)
	go func() { locked <- lockKey(ctx, second, other, "k", kv.LockAlwaysWait) }()
	select {
	case err := <-locked:
		t.Fatalf("the key is held by another: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	require.NoError(t, holder.Set([]byte("k"), []byte("1")))
	require.NoError(t, holder.Commit(ctx))
	err = <-locked
	var conflict *tikverr.ErrWriteConflict
	if errors.As(err, &conflict) {
		// Locked too early to see the commit: as a database does, once more.
		err = lockKey(ctx, second, other, "k", kv.LockAlwaysWait)
	}
	require.NoError(t, err)
	require.NoError(t, other.Set([]byte("k"), []byte("2")))
	require.NoError(t, other.Commit(ctx))
	require.Equal(t, "2", get(t, first, "k"))
}

func TestADeadlockIsFound(t *testing.T) {
	c := serve(t, "--regions", "3")
	client := txnClient(t, c)
	ctx := soon(t)
	// Keys of different regions, led by different stores.
	keys := []string{"a", "\xffb"}
	var txns [2]*transaction.KVTxn
	for i, key := range keys {
		txns[i] = begin(t, client)
		txns[i].SetPessimistic(true)
		require.NoError(t, lockKey(ctx, client, txns[i], key, kv.LockNoWait))
	}
	ended := make(chan int, 2)
	results := make([]error, 2)
	for i := range txns {
		go func() {
			results[i] = lockKey(ctx, client, txns[i], keys[1-i], kv.LockAlwaysWait)
			ended <- i
		}()
	}
	loser := <-ended
	var deadlock *tikverr.ErrDeadlock
	require.ErrorAs(t, results[loser], &deadlock)
	require.NoError(t, txns[loser].Rollback())
	winner := <-ended
	// Who is woken by a rollback is told to try again.
	var conflict *tikverr.ErrWriteConflict
	if errors.As(results[winner], &conflict) {
		results[winner] = lockKey(ctx, client, txns[winner], keys[1-winner], kv.LockAlwaysWait)
	}
	require.NoError(t, results[winner])
	require.NoError(t, txns[winner].Rollback())
}

func TestLocksOfTheDeadAreCleared(t *testing.T) {
	c := serve(t, "--regions", "3")
	client := txnClient(t, c)
	put(t, client, "0", "a", "\xffb")
	dead := begin(t, client)
	probe := transaction.TxnProbe{KVTxn: dead}
	for _, key := range []string{"a", "\xffb"} {
		require.NoError(t, dead.Set([]byte(key), []byte("1")))
	}
	committer, err := probe.NewCommitter(0)
	require.NoError(t, err)
	committer.SetLockTTL(1)
	require.NoError(t, committer.PrewriteAllMutations(soon(t)))
	// The lock is over as the oracle counts, which is told of an hour that nobody waits for.
	c.do("jump_tso", map[string]any{"by_ms": 3_600_000}, nil)
	require.Equal(t, "0", get(t, client, "a"))
	require.Equal(t, "0", get(t, client, "\xffb"))
}

func TestPipelinedTransactionsFlushAsTheyGo(t *testing.T) {
	c := serve(t, "--regions", "3")
	client := txnClient(t, c)
	ctx := soon(t)
	txn := begin(t, client, tikv.WithDefaultPipelinedTxn())
	require.True(t, txn.IsPipelined())
	keys := numbered("k", 20_000)
	for i, key := range keys {
		require.NoError(t, txn.Set(key, key))
		if i%5_000 == 4_999 {
			_, err := txn.GetMemBuffer().Flush(true)
			require.NoError(t, err)
		}
	}
	require.NoError(t, txn.GetMemBuffer().FlushWait())
	// It reads its own writes where they are now.
	own, err := txn.BatchGet(ctx, keys[:3])
	require.NoError(t, err)
	require.Equal(t, keys[0], own[string(keys[0])].Value)
	require.NoError(t, txn.Commit(ctx))
	ts, err := client.CurrentTimestamp(oracle.GlobalTxnScope)
	require.NoError(t, err)
	found, err := client.GetSnapshot(ts).BatchGet(ctx, keys)
	require.NoError(t, err)
	require.Len(t, found, len(keys))
}

func TestStaleReadsAreAnsweredByReplicas(t *testing.T) {
	c := serve(t, "--safe-ts-every", "20")
	client := txnClient(t, c)
	put(t, client, "1", "k")
	ts, err := client.CurrentTimestamp(oracle.GlobalTxnScope)
	require.NoError(t, err)
	put(t, client, "2", "k")
	for _, kind := range []kv.ReplicaReadType{kv.ReplicaReadFollower, kv.ReplicaReadMixed} {
		snapshot := client.GetSnapshot(ts)
		snapshot.SetReplicaRead(kind)
		snapshot.SetIsStalenessReadOnly(true)
		found, err := snapshot.Get(soon(t), []byte("k"))
		require.NoError(t, err)
		require.Equal(t, "1", string(found.Value))
	}
	// Without staleness, a follower asks its leader how far it must be.
	now, err := client.CurrentTimestamp(oracle.GlobalTxnScope)
	require.NoError(t, err)
	snapshot := client.GetSnapshot(now)
	snapshot.SetReplicaRead(kv.ReplicaReadFollower)
	found, err := snapshot.Get(soon(t), []byte("k"))
	require.NoError(t, err)
	require.Equal(t, "2", string(found.Value))
}
