package peers

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tikv/client-go/v2/config"
	"github.com/tikv/client-go/v2/rawkv"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

func TestConnectionsMayBeEncrypted(t *testing.T) {
	directory := t.TempDir()
	c := serve(t, "--tls", directory)
	// The client encrypts nothing unless it has a certificate to show; here nobody asks for it.
	certificate, key := filepath.Join(directory, "cert.pem"), filepath.Join(directory, "key.pem")
	security := config.NewSecurity(certificate, certificate, key, nil)
	client, err := rawkv.NewClientWithOpts(soon(t), []string{"https://" + c.pd}, rawkv.WithSecurity(security))
	require.NoError(t, err)
	defer func() { require.NoError(t, client.Close()) }()
	require.NoError(t, client.Put(soon(t), []byte("k"), []byte("v")))
	value, err := client.Get(soon(t), []byte("k"))
	require.NoError(t, err)
	require.Equal(t, "v", string(value))
}

func TestRequestsMayBeCompressedAndLarge(t *testing.T) {
	c := serve(t)
	compressed := grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name))
	client := rawClient(t, c, rawkv.WithGRPCDialOptions(compressed))
	large := make([]byte, 5<<20)
	for i := range large {
		large[i] = byte(i * i >> 8)
	}
	require.NoError(t, client.Put(soon(t), []byte("k"), large))
	value, err := client.Get(soon(t), []byte("k"))
	require.NoError(t, err)
	require.Equal(t, large, value)
}

func TestManyClientsAtOnce(t *testing.T) {
	c := serve(t, "--regions", "3")
	const clients = 40
	results := make([]error, clients)
	var wait sync.WaitGroup
	for i := range clients {
		wait.Go(func() {
			client, err := rawkv.NewClientWithOpts(soon(t), []string{c.pd})
			if err != nil {
				results[i] = err
				return
			}
			defer func() { _ = client.Close() }()
			key := fmt.Appendf([]byte{byte(i * 6)}, "%d", i)
			for range 20 {
				if results[i] = client.Put(soon(t), key, key); results[i] != nil {
					return
				}
			}
		})
	}
	wait.Wait()
	for _, err := range results {
		require.NoError(t, err)
	}
}

func TestServersSayWhatTheyKnow(t *testing.T) {
	c := serve(t)
	connection, err := grpc.NewClient(c.pd, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer func() { _ = connection.Close() }()
	ctx := soon(t)
	health := healthpb.NewHealthClient(connection)
	checked, err := health.Check(ctx, &healthpb.HealthCheckRequest{})
	require.NoError(t, err)
	require.Equal(t, healthpb.HealthCheckResponse_SERVING, checked.Status)
	listed, err := health.List(ctx, &healthpb.HealthListRequest{})
	require.NoError(t, err)
	require.Equal(t, healthpb.HealthCheckResponse_SERVING, listed.Statuses[""].GetStatus())
	watching, stop := context.WithCancel(ctx)
	defer stop()
	watch, err := health.Watch(watching, &healthpb.HealthCheckRequest{Service: "other"})
	require.NoError(t, err)
	told, err := watch.Recv()
	require.NoError(t, err)
	require.Equal(t, healthpb.HealthCheckResponse_SERVICE_UNKNOWN, told.Status)
	for _, path := range []string{"/pdpb.PD/Dance", "/other.Service/Call", "/tikvpb.Tikv/RawGet"} {
		err := connection.Invoke(ctx, path, &healthpb.HealthCheckRequest{}, &healthpb.HealthCheckResponse{})
		require.Equal(t, codes.Unimplemented, status.Code(err), "%s: %v", path, err)
	}
}
