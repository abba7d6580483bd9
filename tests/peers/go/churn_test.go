package peers

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/oracle"
	"github.com/tikv/client-go/v2/txnkv"
)

const (
	accounts = 24
	balance  = 100
)

// transfer moves money between two accounts, if that is possible at the moment.
func transfer(ctx context.Context, client *txnkv.Client, pessimistic bool) error {
	txn, err := client.Begin()
	if err != nil {
		return err
	}
	txn.SetPessimistic(pessimistic)
	txn.SetEnableAsyncCommit(rand.Intn(2) == 0)
	txn.SetEnable1PC(rand.Intn(2) == 0)
	from, to := rand.Intn(accounts), rand.Intn(accounts-1)
	if to >= from {
		to++
	}
	keys := [][]byte{account(from), account(to)}
	if pessimistic {
		for _, key := range keys {
			if err := lockKey(ctx, client, txn, string(key), 200); err != nil {
				return errors.Join(err, txn.Rollback())
			}
		}
		// Under its locks it reads what is newest.
		ts, err := client.CurrentTimestamp(oracle.GlobalTxnScope)
		if err != nil {
			return errors.Join(err, txn.Rollback())
		}
		txn.GetSnapshot().SetSnapshotTS(ts)
	}
	for i, key := range keys {
		found, err := txn.Get(ctx, key)
		if err != nil {
			return errors.Join(err, txn.Rollback())
		}
		amount, err := strconv.Atoi(string(found.Value))
		if err != nil {
			return err
		}
		if err := txn.Set(key, []byte(strconv.Itoa(amount+2*i-1))); err != nil {
			return err
		}
	}
	return txn.Commit(ctx)
}

func account(number int) []byte {
	return fmt.Appendf([]byte{byte(number * 10)}, "account%02d", number)
}

// sum adds up what all have, and how many there are.
func sum(ctx context.Context, client *txnkv.Client) (int, int, error) {
	ts, err := client.CurrentTimestamp(oracle.GlobalTxnScope)
	if err != nil {
		return 0, 0, err
	}
	iterator, err := client.GetSnapshot(ts).Iter(nil, nil)
	if err != nil {
		return 0, 0, err
	}
	count, total := 0, 0
	for iterator.Valid() {
		amount, err := strconv.Atoi(string(iterator.Value()))
		if err != nil {
			return 0, 0, err
		}
		count, total = count+1, total+amount
		if err := iterator.Next(); err != nil {
			return 0, 0, err
		}
	}
	return count, total, nil
}

// disturb changes the cluster until it is told to stop.
func disturb(c *cluster, stop <-chan struct{}, shape func(int)) {
	for turn := 0; ; turn++ {
		select {
		case <-stop:
			return
		case <-time.After(5 * time.Millisecond):
			shape(turn)
		}
	}
}

// move splits, merges and moves regions, and has PD led by another.
func move(c *cluster) func(int) {
	return func(turn int) {
		regions := c.regions()
		one := regions[rand.Intn(len(regions))]
		switch turn % 6 {
		case 0:
			key := fmt.Sprintf("%02x%02x", rand.Intn(256), rand.Intn(256))
			c.try("split", map[string]any{"keys": []any{map[string]any{"hex": key}}})
		case 1, 2:
			to := one.Stores[rand.Intn(len(one.Stores))]
			c.try("transfer_leader", map[string]any{"region": one.ID, "store": to})
		case 3:
			if len(regions) > 12 {
				at := rand.Intn(len(regions) - 1)
				c.try("merge", map[string]any{"source": regions[at].ID, "target": regions[at+1].ID})
			}
		case 4:
			c.try("depose_leader", map[string]any{"region": one.ID})
			to := one.Stores[rand.Intn(len(one.Stores))]
			c.try("transfer_leader", map[string]any{"region": one.ID, "store": to})
		case 5:
			c.try("lead_pd", map[string]any{"member": turn / 6 % 3})
		}
	}
}

// restart has stores begin anew and be slow.
func restart(c *cluster) func(int) {
	return func(turn int) {
		store := 1 + turn%3
		switch turn % 20 {
		case 0:
			c.try("restart", map[string]any{"store": store})
			c.try("fail_over", map[string]any{"store": store})
		case 12:
			c.try("slow", map[string]any{"store": store, "delay_ms": 5})
		case 16:
			c.try("slow", map[string]any{"store": store, "delay_ms": 0})
		}
	}
}

func TestMoneyIsKeptWhileRegionsMove(t *testing.T) {
	work(t, 2*time.Second, move)
}

func TestMoneyIsKeptWhileStoresBeginAnew(t *testing.T) {
	work(t, 3*time.Second, restart)
}

func work(t *testing.T, lasts time.Duration, trouble func(*cluster) func(int)) {
	c := serve(t, "--regions", "4", "--pd-members", "3")
	client := txnClient(t, c)
	ctx := soon(t)
	setup := begin(t, client)
	for i := range accounts {
		require.NoError(t, setup.Set(account(i), []byte(strconv.Itoa(balance))))
	}
	require.NoError(t, setup.Commit(ctx))

	stop := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() { disturb(c, stop, trouble(c)) })
	var guard sync.Mutex
	done := 0
	for worker := range 6 {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// What fails has not happened, or has as a whole; the sum tells.
				if transfer(ctx, client, worker%2 == 0) == nil {
					guard.Lock()
					done++
					guard.Unlock()
				}
			}
		})
	}
	for until := time.Now().Add(lasts); time.Now().Before(until); {
		count, total, err := sum(ctx, client)
		require.NoError(t, err)
		require.Equal(t, accounts, count)
		require.Equal(t, accounts*balance, total)
	}
	close(stop)
	wait.Wait()
	count, total, err := sum(ctx, client)
	require.NoError(t, err)
	require.Equal(t, [2]int{accounts, accounts * balance}, [2]int{count, total})
	require.Greater(t, done, 20, "hardly anything was done")
	t.Logf("%d transfers", done)
}
