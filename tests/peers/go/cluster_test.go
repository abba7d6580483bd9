// Package peers has the official Go client at work on the simulated cluster.
//
// The client has no part in the cluster's reading of the protocol, so a misreading shows here. Each
// test has a cluster of its own: the program that the environment variable TIKV_MOCK names.
package peers

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pingcap/log"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zapcore"
)

// patience is how long a test may take at most before its calls give up.
const patience = time.Minute

func TestMain(m *testing.M) {
	// The client tells at length what it does; what fails it also returns.
	log.SetLevel(zapcore.FatalLevel)
	os.Exit(m.Run())
}

// cluster is a simulated cluster that runs.
type cluster struct {
	t       *testing.T
	pd      string
	control string
}

// serve starts a cluster, which ends with the test. Tests that have one run side by side.
func serve(t *testing.T, flags ...string) *cluster {
	t.Helper()
	t.Parallel()
	program := os.Getenv("TIKV_MOCK")
	if program == "" {
		t.Fatal("TIKV_MOCK must name the program tikv-mock; `just peers-go` builds it")
	}
	command := exec.Command(program, append([]string{"--control"}, flags...)...)
	command.Stderr = os.Stderr
	output, err := command.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start())
	t.Cleanup(func() {
		// It ends in order although clients are still connected.
		_ = command.Process.Signal(syscall.SIGINT)
		ended := make(chan error, 1)
		go func() { ended <- command.Wait() }()
		select {
		case err := <-ended:
			require.NoError(t, err)
		case <-time.After(5 * time.Second):
			_ = command.Process.Kill()
			t.Error("tikv-mock does not end")
		}
	})
	lines := bufio.NewScanner(output)
	next := func(prefix string) string {
		require.True(t, lines.Scan(), "tikv-mock says nothing")
		rest, found := strings.CutPrefix(lines.Text(), prefix)
		require.True(t, found, lines.Text())
		return strings.Fields(rest)[0]
	}
	return &cluster{t: t, pd: next("listening pd="), control: next("control=")}
}

// do has a control verb done, and reads what comes of it.
func (c *cluster) do(verb string, arguments map[string]any, into any) {
	c.t.Helper()
	body, err := json.Marshal(arguments)
	require.NoError(c.t, err)
	status, text := c.call(http.MethodPost, "http://"+c.control+"/"+verb, body)
	require.Equal(c.t, http.StatusOK, status, "%s: %s", verb, text)
	if into != nil {
		require.NoError(c.t, json.Unmarshal(text, into), "%s", text)
	}
}

// try has a control verb done that the cluster may forbid at the moment.
func (c *cluster) try(verb string, arguments map[string]any) bool {
	body, err := json.Marshal(arguments)
	if err != nil {
		return false
	}
	url := "http://" + c.control + "/" + verb
	response, err := http.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		return false
	}
	defer func() { _ = response.Body.Close() }()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode == http.StatusOK
}

// askPD makes a call of PD's over plain HTTP.
func (c *cluster) askPD(method, path string, arguments any, into any) int {
	c.t.Helper()
	body, err := json.Marshal(arguments)
	require.NoError(c.t, err)
	status, text := c.call(method, "http://"+c.pd+path, body)
	if into != nil {
		require.NoError(c.t, json.Unmarshal(text, into), "%s", text)
	}
	return status
}

func (c *cluster) call(method, url string, body []byte) (int, []byte) {
	c.t.Helper()
	request, err := http.NewRequest(method, url, bytes.NewReader(body))
	require.NoError(c.t, err)
	response, err := http.DefaultClient.Do(request)
	require.NoError(c.t, err)
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	require.NoError(c.t, err)
	return response.StatusCode, text
}

// region is what the cluster tells of a region.
type region struct {
	ID     uint64   `json:"id"`
	Leader uint64   `json:"leader"`
	Stores []uint64 `json:"stores"`
}

// regions tells which regions there are.
func (c *cluster) regions() []region {
	c.t.Helper()
	var told struct {
		State struct {
			Regions []region `json:"regions"`
		} `json:"state"`
	}
	c.do("describe", map[string]any{}, &told)
	return told.State.Regions
}

// soon is the context of a call that must not hang.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// numbered are keys, or values, that sort by their numbers.
func numbered(prefix string, count int) [][]byte {
	all := make([][]byte, count)
	for i := range all {
		all[i] = fmt.Appendf(nil, "%s%06d", prefix, i)
	}
	return all
}
