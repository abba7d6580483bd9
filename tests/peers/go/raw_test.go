package peers

import (
	"testing"
	"time"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/rawkv"
)

// versions are the ways in which stores keep raw keys, and how the client is told.
var versions = []struct {
	flag    string
	version kvrpcpb.APIVersion
	hasTTL  bool
}{
	{"v1", kvrpcpb.APIVersion_V1, false},
	{"v1ttl", kvrpcpb.APIVersion_V1TTL, true},
	{"v2", kvrpcpb.APIVersion_V2, true},
}

func rawClient(t *testing.T, c *cluster, opts ...rawkv.ClientOpt) *rawkv.Client {
	t.Helper()
	client, err := rawkv.NewClientWithOpts(soon(t), []string{c.pd}, opts...)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, client.Close()) })
	return client
}

func TestRawKeysInEveryForm(t *testing.T) {
	for _, form := range versions {
		t.Run(form.flag, func(t *testing.T) {
			c := serve(t, "--regions", "7", "--api-version", form.flag)
			client := rawClient(t, c, rawkv.WithAPIVersion(form.version))
			ctx := soon(t)

			value, err := client.Get(ctx, []byte("none"))
			require.NoError(t, err)
			require.Nil(t, value)
			// More than one request can hold, over all regions.
			keys := numbered("k", 10_000)
			values := numbered("v", 10_000)
			for i := range keys {
				keys[i] = append([]byte{byte(i * 7)}, keys[i]...)
			}
			require.NoError(t, client.BatchPut(ctx, keys, values))
			found, err := client.BatchGet(ctx, keys)
			require.NoError(t, err)
			require.Equal(t, values, found)

			start, end := []byte{0x20}, []byte{0xd0}
			up, _, err := client.Scan(ctx, start, end, 10_000)
			require.NoError(t, err)
			down, _, err := client.ReverseScan(ctx, end, start, 10_000)
			require.NoError(t, err)
			require.Greater(t, len(up), 6_000)
			require.Len(t, down, len(up))
			for i := range up {
				require.Equal(t, up[i], down[len(down)-1-i])
			}
			only, none, err := client.Scan(ctx, start, end, 3, rawkv.ScanKeyOnly())
			require.NoError(t, err)
			require.Equal(t, up[:3], only)
			require.Empty(t, none[0])

			checksum, err := client.Checksum(ctx, start, end)
			require.NoError(t, err)
			require.EqualValues(t, len(up), checksum.TotalKvs)

			require.NoError(t, client.DeleteRange(ctx, start, end))
			left, _, err := client.Scan(ctx, start, end, 10)
			require.NoError(t, err)
			require.Empty(t, left)
			require.NoError(t, client.BatchDelete(ctx, keys))
			left, _, err = client.Scan(ctx, nil, nil, 10)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

func TestRawSwaps(t *testing.T) {
	c := serve(t)
	client := rawClient(t, c).SetAtomicForCAS(true)
	ctx := soon(t)
	key := []byte("k")
	before, swapped, err := client.CompareAndSwap(ctx, key, nil, []byte("1"))
	require.NoError(t, err)
	require.True(t, swapped)
	require.Nil(t, before)
	before, swapped, err = client.CompareAndSwap(ctx, key, nil, []byte("2"))
	require.NoError(t, err)
	require.False(t, swapped)
	require.Equal(t, []byte("1"), before)
	// Of many that count up from what they have read, each counts once.
	const workers, steps = 8, 20
	done := make(chan error, workers)
	for range workers {
		go func() {
			for range steps {
				for {
					now, err := client.Get(ctx, key)
					if err != nil {
						done <- err
						return
					}
					_, swapped, err := client.CompareAndSwap(ctx, key, now, append(now, 'x'))
					if err != nil {
						done <- err
						return
					}
					if swapped {
						break
					}
				}
			}
			done <- nil
		}()
	}
	for range workers {
		require.NoError(t, <-done)
	}
	last, err := client.Get(ctx, key)
	require.NoError(t, err)
	require.Len(t, last, 1+workers*steps)
}

func TestRawLifetimes(t *testing.T) {
	for _, form := range versions {
		t.Run(form.flag, func(t *testing.T) {
			c := serve(t, "--api-version", form.flag)
			client := rawClient(t, c, rawkv.WithAPIVersion(form.version))
			ctx := soon(t)
			err := client.PutWithTTL(ctx, []byte("k"), []byte("v"), 1)
			if !form.hasTTL {
				require.ErrorContains(t, err, "ttl is not enabled")
				return
			}
			require.NoError(t, err)
			keys, values := [][]byte{[]byte("long"), []byte("ever")}, [][]byte{[]byte("v"), []byte("v")}
			require.NoError(t, client.BatchPutWithTTL(ctx, keys, values, []uint64{1_000, 0}))
			left, err := client.GetKeyTTL(ctx, []byte("long"))
			require.NoError(t, err)
			require.LessOrEqual(t, *left, uint64(1_000))
			require.Greater(t, *left, uint64(900))
			left, err = client.GetKeyTTL(ctx, []byte("ever"))
			require.NoError(t, err)
			require.Zero(t, *left)
			require.Eventually(t, func() bool {
				value, err := client.Get(ctx, []byte("k"))
				return err == nil && value == nil
			}, 5*time.Second, 50*time.Millisecond)
			left, err = client.GetKeyTTL(ctx, []byte("k"))
			require.NoError(t, err)
			require.Nil(t, left)
			found, _, err := client.Scan(ctx, nil, nil, 10)
			require.NoError(t, err)
			require.Len(t, found, 2)
		})
	}
}

func TestRawKeyspacesDoNotSeeEachOther(t *testing.T) {
	c := serve(t, "--keyspace", "one", "--keyspace", "two")
	ctx := soon(t)
	for _, name := range []string{"one", "two"} {
		client := rawClient(t, c, rawkv.WithAPIVersion(kvrpcpb.APIVersion_V2), rawkv.WithKeyspace(name))
		found, _, err := client.Scan(ctx, nil, nil, 10)
		require.NoError(t, err)
		require.Empty(t, found)
		require.NoError(t, client.Put(ctx, []byte("k"), []byte(name)))
		value, err := client.Get(ctx, []byte("k"))
		require.NoError(t, err)
		require.Equal(t, name, string(value))
		keys, _, err := client.ReverseScan(ctx, []byte("l"), nil, 10)
		require.NoError(t, err)
		require.Equal(t, [][]byte{[]byte("k")}, keys)
	}
	_, err := rawkv.NewClientWithOpts(ctx, []string{c.pd},
		rawkv.WithAPIVersion(kvrpcpb.APIVersion_V2), rawkv.WithKeyspace("three"))
	require.ErrorContains(t, err, "keyspace does not exist")
}
