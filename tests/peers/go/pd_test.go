package peers

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	rmpb "github.com/pingcap/kvproto/pkg/resource_manager"
	"github.com/stretchr/testify/require"
	tikverr "github.com/tikv/client-go/v2/error"
	"github.com/tikv/client-go/v2/oracle"
	"github.com/tikv/client-go/v2/txnkv"
	pd "github.com/tikv/pd/client"
	"github.com/tikv/pd/client/clients/gc"
	"github.com/tikv/pd/client/clients/router"
	"github.com/tikv/pd/client/constants"
	pdhttp "github.com/tikv/pd/client/http"
	"github.com/tikv/pd/client/opt"
	"github.com/tikv/pd/client/pkg/caller"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"
)

func pdClient(t *testing.T, c *cluster) pd.Client {
	t.Helper()
	client, err := pd.NewClientWithContext(soon(t), caller.TestComponent, []string{c.pd}, pd.SecurityOption{})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func TestGarbageIsCollectedBehindBarriers(t *testing.T) {
	c := serve(t)
	client := txnClient(t, c)
	ctx := soon(t)
	put(t, client, "1", "k")
	old, err := client.CurrentTimestamp(oracle.GlobalTxnScope)
	require.NoError(t, err)
	put(t, client, "2", "k")

	states := client.GetPDClient().GetGCStatesClient(constants.NullKeyspaceID)
	barrier, err := states.SetGCBarrier(ctx, "backup", old, time.Hour)
	require.NoError(t, err)
	require.Equal(t, old, barrier.BarrierTS)
	now, err := client.CurrentTimestamp(oracle.GlobalTxnScope)
	require.NoError(t, err)
	reached, err := client.GC(ctx, now)
	require.NoError(t, err)
	require.Equal(t, old, reached, "the barrier holds it back")
	found, err := client.GetSnapshot(old).Get(ctx, []byte("k"))
	require.NoError(t, err)
	require.Equal(t, "1", string(found.Value))

	_, err = states.DeleteGCBarrier(ctx, "backup")
	require.NoError(t, err)
	reached, err = client.GC(ctx, now)
	require.NoError(t, err)
	require.Equal(t, now, reached)
	state, err := states.GetGCState(ctx)
	require.NoError(t, err)
	require.Equal(t, now, state.TxnSafePoint)
	require.Empty(t, state.GCBarriers)
	client.UpdateTxnSafePointCache(now, time.Now())
	_, err = client.GetSnapshot(old).Get(ctx, []byte("k"))
	var aborted *tikverr.ErrTxnAbortedByGC
	require.ErrorAs(t, err, &aborted)
	require.Equal(t, "2", get(t, client, "k"))
}

func TestEachKeyspaceCollectsForItself(t *testing.T) {
	c := serve(t, "--api-version", "v2")
	ctx := soon(t)
	ids := make(map[string]uint32)
	for _, name := range []string{"one", "two"} {
		var created struct {
			ID uint32 `json:"id"`
		}
		wish := map[string]any{
			"name":   name,
			"config": map[string]string{"gc_management_type": "keyspace_level"},
		}
		status := c.askPD(http.MethodPost, "/pd/api/v2/keyspaces", wish, &created)
		require.Equal(t, http.StatusOK, status)
		ids[name] = created.ID
	}
	for _, name := range []string{"one", "two"} {
		client := txnClient(t, c, txnkv.WithAPIVersion(kvrpcpb.APIVersion_V2), txnkv.WithKeyspace(name))
		require.Empty(t, get(t, client, "k"))
		put(t, client, name, "k")
		require.Equal(t, name, get(t, client, "k"))
	}
	plain := pdClient(t, c)
	controller := plain.GetGCInternalController(ids["one"])
	advanced, err := controller.AdvanceTxnSafePoint(ctx, 1_000)
	require.NoError(t, err)
	require.EqualValues(t, 1_000, advanced.NewTxnSafePoint)
	states := func(name string) gc.GCState {
		state, err := plain.GetGCStatesClient(ids[name]).GetGCState(ctx)
		require.NoError(t, err)
		return state
	}
	require.EqualValues(t, 1_000, states("one").TxnSafePoint)
	require.Zero(t, states("two").TxnSafePoint)
}

func TestResourceGroupsLimitTheirRequests(t *testing.T) {
	c := serve(t)
	client := pdClient(t, c)
	ctx := soon(t)
	group := &rmpb.ResourceGroup{
		Name: "batch",
		Mode: rmpb.GroupMode_RUMode,
		RUSettings: &rmpb.GroupRequestUnitSettings{
			RU: &rmpb.TokenBucket{Settings: &rmpb.TokenLimitSettings{FillRate: 1_000}},
		},
	}
	_, err := client.AddResourceGroup(ctx, group)
	require.NoError(t, err)
	loaded, err := client.GetResourceGroup(ctx, "batch")
	require.NoError(t, err)
	require.EqualValues(t, 1_000, loaded.RUSettings.RU.Settings.FillRate)
	all, err := client.ListResourceGroups(ctx)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(all), 2, "the default group is there, too")
	buckets, err := client.AcquireTokenBuckets(ctx, &rmpb.TokenBucketsRequest{
		Requests: []*rmpb.TokenBucketRequest{{
			ResourceGroupName: "batch",
			Request: &rmpb.TokenBucketRequest_RuItems{
				RuItems: &rmpb.TokenBucketRequest_RequestRU{
					RequestRU: []*rmpb.RequestUnitItem{{Type: rmpb.RequestUnitType_RU, Value: 10}},
				},
			},
		}},
		TargetRequestPeriodMs: 5_000,
		ClientUniqueId:        1,
	})
	require.NoError(t, err)
	require.Len(t, buckets, 1)
	require.EqualValues(t, 10, buckets[0].GrantedRUTokens[0].GrantedTokens.Tokens)
	_, err = client.DeleteResourceGroup(ctx, "batch")
	require.NoError(t, err)
	// Requests that name a group are served.
	txns := txnClient(t, c)
	txn := begin(t, txns)
	txn.SetResourceGroupName("default")
	require.NoError(t, txn.Set([]byte("k"), []byte("v")))
	require.NoError(t, txn.Commit(ctx))
}

func TestPDTellsOfRegionsInEveryWay(t *testing.T) {
	c := serve(t, "--regions", "8", "--pd-members", "3")
	client := pdClient(t, c)
	ctx := soon(t)
	scanned, err := client.BatchScanRegions(ctx, []router.KeyRange{{StartKey: nil, EndKey: nil}}, 100,
		opt.WithOutputMustContainAllKeyRange())
	require.NoError(t, err)
	require.Len(t, scanned, 8)
	for _, found := range scanned {
		again, err := client.GetRegion(ctx, found.Meta.StartKey, opt.WithBuckets())
		require.NoError(t, err)
		require.Equal(t, found.Meta, again.Meta)
		again, err = client.GetRegionByID(ctx, found.Meta.Id, opt.WithAllowFollowerHandle())
		require.NoError(t, err)
		require.Equal(t, found.Leader, again.Leader)
	}
	previous, err := client.GetPrevRegion(ctx, scanned[3].Meta.StartKey)
	require.NoError(t, err)
	require.Equal(t, scanned[2].Meta, previous.Meta)
	stores, err := client.GetAllStores(ctx, opt.WithExcludeTombstone())
	require.NoError(t, err)
	require.Len(t, stores, 3)

	plain := pdhttp.NewClient("peers", []string{c.pd})
	defer plain.Close()
	told, err := plain.GetRegions(ctx)
	require.NoError(t, err)
	require.EqualValues(t, 8, told.Count)
	one, err := plain.GetRegionByID(ctx, scanned[3].Meta.Id)
	require.NoError(t, err)
	require.EqualValues(t, scanned[3].Leader.StoreId, one.Leader.StoreID)
	byKey, err := plain.GetRegionByKey(ctx, scanned[3].Meta.StartKey)
	require.NoError(t, err)
	require.Equal(t, one.ID, byKey.ID)
	held, err := plain.GetStores(ctx)
	require.NoError(t, err)
	require.Equal(t, 3, held.Count)
	require.Equal(t, "Up", held.Stores[0].Store.StateName)
	members, err := plain.GetMembers(ctx)
	require.NoError(t, err)
	require.Len(t, members.Members, 3)
	stats, err := plain.GetRegionStatusByKeyRange(ctx, pdhttp.NewKeyRange(nil, nil), false)
	require.NoError(t, err)
	require.Equal(t, 8, stats.Count)
}

func TestTimestampsGoOnWhenPDIsLedByAnother(t *testing.T) {
	c := serve(t, "--pd-members", "3")
	client := txnClient(t, c)
	last := uint64(0)
	for turn := range 6 {
		c.do("lead_pd", map[string]any{"member": turn % 3}, nil)
		for range 20 {
			ts, err := client.GetTimestamp(soon(t))
			require.NoError(t, err)
			require.Greater(t, ts, last)
			last = ts
		}
	}
}

func TestEtcdIsInsidePD(t *testing.T) {
	c := serve(t, "--pd-members", "2")
	ctx := soon(t)
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{c.pd}, Logger: zap.NewNop()})
	require.NoError(t, err)
	defer func() { _ = client.Close() }()
	require.NoError(t, client.Sync(ctx))
	require.Len(t, client.Endpoints(), 2)

	// Two candidates, one after the other: transactions, leases and watches at once.
	elect := func(name string) (*concurrency.Session, *concurrency.Election) {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(10))
		require.NoError(t, err)
		return session, concurrency.NewElection(session, "/owner")
	}
	session, first := elect("first")
	require.NoError(t, first.Campaign(ctx, "first"))
	_, second := elect("second")
	elected := make(chan error, 1)
	go func() { elected <- second.Campaign(ctx, "second") }()
	leader, err := second.Leader(ctx)
	require.NoError(t, err)
	require.Equal(t, "first", string(leader.Kvs[0].Value))
	require.NoError(t, session.Close())
	require.NoError(t, <-elected)

	// Where old clients look for the safe point, PD leaves it.
	watch := client.Watch(ctx, "/tidb/store/gcworker/saved_safe_point")
	controller := pdClient(t, c).GetGCInternalController(constants.NullKeyspaceID)
	_, err = controller.AdvanceTxnSafePoint(context.Background(), 77)
	require.NoError(t, err)
	changed := <-watch
	require.Equal(t, "77", string(changed.Events[0].Kv.Value))
}
