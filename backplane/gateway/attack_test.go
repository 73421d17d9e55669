package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/holdfast-ws/holdfast/backplane"
	"github.com/holdfast-ws/holdfast/heartbeat"
	"github.com/holdfast-ws/holdfast/internal/memnet"
	"github.com/holdfast-ws/holdfast/internal/wire"
	"github.com/holdfast-ws/holdfast/replay"
)

// A setup is what startWith starts. What is zero is as in start.
type setup struct {
	Options
	hub    backplane.Options
	bp     backplane.Backplane
	net    memnet.Settings
	header time.Duration // ReadHeaderTimeout
}

const latency = time.Millisecond

// startWith starts a gateway in a bubble, and ends it with the test.
func startWith(t testing.TB, s setup) *rig {
	t.Helper()
	if s.Authorize == nil {
		s.Authorize = allowAll
	}
	if s.net.Latency == 0 {
		s.net.Latency = latency
	}
	if s.bp == nil {
		s.bp = backplane.NewMemory(nil)
	}
	r := &rig{t: t, net: memnet.New(s.net), bp: s.bp, hub: backplane.New(s.bp, &s.hub)}
	gw, err := New(r.hub, &s.Options)
	if err != nil {
		t.Fatal(err)
	}
	r.gw = gw
	r.srv = &http.Server{Handler: gw, ReadHeaderTimeout: s.header}
	go r.srv.Serve(r.net)
	t.Cleanup(func() {
		r.stop()
		time.Sleep(time.Second) // until whoever still writes has found out
	})
	return r
}

// A socket is a client by hand, which can do everything wrong.
type socket struct {
	t      testing.TB
	conn   net.Conn
	br     *bufio.Reader
	link   *memnet.Link
	silent bool // does not answer pings
	pings  int
	pongs  int
	bytes  int // of data frames read
}

const handshake = "GET /ws HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: holdfast.v1\r\n"

// dialRaw returns a connection on which nothing was sent.
func (r *rig) dialRaw() *socket {
	r.t.Helper()
	c, err := r.net.DialContext(context.Background(), "", "")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetReadDeadline(time.Now().Add(time.Hour)) // rather than to wait for ever
	links := r.net.Links()
	return &socket{t: r.t, conn: c, br: bufio.NewReader(c), link: links[len(links)-1]}
}

// socket returns a connection that has not said hello.
func (r *rig) socket(headers ...string) *socket {
	r.t.Helper()
	s := r.dialRaw()
	s.upgrade(headers...)
	return s
}

func (s *socket) upgrade(headers ...string) {
	s.t.Helper()
	s.write([]byte(handshake + strings.Join(headers, "") + "\r\n"))
	if status := s.response(); status != 101 {
		s.t.Fatalf("the handshake was answered with %d", status)
	}
}

// response reads the header of a response.
func (s *socket) response() (status int) {
	s.t.Helper()
	resp, err := http.ReadResponse(s.br, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode
}

// welcome returns a connection that was welcomed.
func (r *rig) welcome(token string, headers ...string) *socket {
	r.t.Helper()
	s := r.socket(headers...)
	s.hello(token)
	return s
}

func (s *socket) hello(token string) *wire.Frame {
	s.t.Helper()
	s.send(`{"t":"hello","v":1,"token":"` + token + `"}`)
	return s.expect(wire.Welcome)
}

// masked is a frame of a client, with the mask 0, so that the payload can be read.
func masked(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	return append(append(b, 0, 0, 0, 0), payload...)
}

func (s *socket) write(b []byte) {
	s.t.Helper()
	if _, err := s.conn.Write(b); err != nil {
		s.t.Fatalf("%.80q: %v", b, err)
	}
}

func (s *socket) send(text string) {
	s.t.Helper()
	s.write(masked(final|opText, []byte(text)))
}

// A closed is how a connection ended: with a close frame, or without one if code is 0.
type closed struct {
	code   int
	reason string
	err    error
}

func (c *closed) Error() string { return fmt.Sprintf("closed with %d %q: %v", c.code, c.reason, c.err) }

// frame reads one frame.
func (s *socket) frame() (first byte, payload []byte, err error) {
	var h [2]byte
	if _, err = io.ReadFull(s.br, h[:]); err != nil {
		return 0, nil, &closed{err: err}
	}
	n := uint64(h[1])
	switch n {
	case 126:
		var b [2]byte
		_, err = io.ReadFull(s.br, b[:])
		n = uint64(binary.BigEndian.Uint16(b[:]))
	case 127:
		var b [8]byte
		_, err = io.ReadFull(s.br, b[:])
		n = binary.BigEndian.Uint64(b[:])
	}
	if err == nil {
		if h[1]&0x80 != 0 || n > 1<<24 {
			s.t.Fatalf("a frame of a server with a mask, or %d bytes", n)
		}
		payload = make([]byte, n)
		_, err = io.ReadFull(s.br, payload)
	}
	if err != nil {
		return 0, nil, &closed{err: err}
	}
	switch first = h[0]; first & 0xf {
	case opClose:
		return 0, nil, &closed{code: int(binary.BigEndian.Uint16(payload)), reason: string(payload[2:])}
	case 9:
		s.pings++
		if !s.silent {
			s.conn.Write(masked(final|10, payload))
		}
	case 10:
		s.pongs++
	default:
		s.bytes += len(payload)
	}
	return first, payload, nil
}

// next reads the next message.
func (s *socket) next() (*wire.Frame, error) {
	var message []byte
	begun := false
	for {
		first, payload, err := s.frame()
		if err != nil {
			return nil, err
		}
		switch op := first & 0xf; {
		case op >= 8:
			continue
		case begun != (op == 0):
			s.t.Fatalf("a frame with %#x in the wrong place", first)
		}
		begun = true
		message = append(message, payload...)
		if first&final != 0 {
			break
		}
	}
	f := new(wire.Frame)
	if err := wire.Decode(message, f); err != nil {
		s.t.Fatalf("%s: %v", message, err)
	}
	return f, nil
}

// expect returns the next frame, which has to be of that type.
func (s *socket) expect(typ string) *wire.Frame {
	s.t.Helper()
	f, err := s.next()
	if err != nil {
		s.t.Fatalf("waiting for %s: %v", typ, err)
	}
	if f.Type != typ {
		s.t.Fatalf("got %s, not %s", f.Append(nil), typ)
	}
	return f
}

// ask sends a frame and returns the next one that comes, which has to be of that type.
func (s *socket) ask(text, typ string) *wire.Frame {
	s.t.Helper()
	s.send(text)
	return s.expect(typ)
}

// alive fails the test if the connection does not answer any more.
func (s *socket) alive() {
	s.t.Helper()
	s.ask(`{"t":"ping"}`, wire.Pong)
}

// end reads until the end.
func (s *socket) end() *closed {
	for {
		if _, err := s.next(); err != nil {
			return err.(*closed)
		}
	}
}

// idle answers pings until the end, which it returns.
func (s *socket) idle() <-chan *closed {
	done := make(chan *closed, 1)
	go func() { done <- s.end() }()
	return done
}

// pos is what stands in a frame for a position.
func pos(p replay.Position) string { return `"` + p.String() + `"` }

// bystander has somebody else use the gateway, while something happens, and returns a
// function that ends that, and fails the test if it was disturbed: every message has
// to come at once, that is after the latency of the network, or at most late after that.
func (r *rig) bystander(late time.Duration) (check func()) {
	r.t.Helper()
	s := r.welcome("bystander")
	s.ask(`{"t":"subscribe","topic":"bystander"}`, wire.Subscribed)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	sent, got := 0, 0
	var worst time.Duration
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			sent++
			r.publish("bystander", fmt.Sprint(time.Now().UnixNano()))
		}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			f, err := s.next()
			if err != nil {
				return
			}
			for _, e := range f.Entries {
				var at int64
				fmt.Sscan(string(e.Data), &at)
				worst = max(worst, time.Since(time.Unix(0, at)))
				got++
			}
		}
	}()
	return func() {
		r.t.Helper()
		time.Sleep(200 * time.Millisecond)
		close(stop)
		wg.Wait()
		time.Sleep(late + time.Second)
		s.conn.Close()
		<-done
		if sent == 0 || got != sent || worst > latency+late {
			r.t.Errorf("somebody else was disturbed: got %d of %d messages, the last one after %v", got, sent, worst)
		}
	}
}

// publish publishes from within the process.
func (r *rig) publish(topic, data string) replay.Position {
	r.t.Helper()
	receipt, err := r.hub.Publish(context.Background(), topic, backplane.Message{Data: []byte(data)})
	if err != nil {
		r.t.Fatal(err)
	}
	return receipt.Pos
}

// holds fails the test if a topic does not hold exactly this.
func (r *rig) holds(topic string, want ...string) {
	r.t.Helper()
	if d := cmp.Diff(want, r.stored(topic)); d != "" {
		r.t.Errorf("stored (-want +got):\n%s", d)
	}
}

// stored returns all messages of a topic.
func (r *rig) stored(topic string) (data []string) {
	page, err := r.bp.Read(context.Background(), topic, replay.Position{}, replay.Budget{Entries: math.MaxInt32, Bytes: math.MaxInt64})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range page.Entries {
		data = append(data, string(e.Data))
	}
	return data
}

// A gate is a backplane that can be closed for a while: calls then hang.
type gate struct {
	*backplane.Memory
	appends, reads hang
}

// A hang can hold up calls.
type hang struct {
	mu     sync.Mutex
	locked chan struct{}
	n      atomic.Int64 // calls that hang
}

func (h *hang) close() { h.mu.Lock(); h.locked = make(chan struct{}); h.mu.Unlock() }
func (h *hang) open()  { h.mu.Lock(); close(h.locked); h.locked = nil; h.mu.Unlock() }

func (h *hang) pass(ctx context.Context) error {
	h.mu.Lock()
	locked := h.locked
	h.mu.Unlock()
	if locked == nil {
		return nil
	}
	h.n.Add(1)
	defer h.n.Add(-1)
	select {
	case <-locked:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func newGate() *gate { return &gate{Memory: backplane.NewMemory(nil)} }

func (g *gate) Append(ctx context.Context, topic string, m backplane.Message) (backplane.Receipt, error) {
	if err := g.appends.pass(ctx); err != nil {
		return backplane.Receipt{}, err
	}
	return g.Memory.Append(ctx, topic, m)
}

func (g *gate) Read(ctx context.Context, topic string, after replay.Position, max replay.Budget) (backplane.Page, error) {
	if err := g.reads.pass(ctx); err != nil {
		return backplane.Page{}, err
	}
	return g.Memory.Read(ctx, topic, after, max)
}

// allocated returns how many bytes f allocates, freed ones included.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// heap returns how many bytes are in use.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestASlowHandshakeIsForTheHTTPServerToCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{header: 5 * time.Second})
		defer r.bystander(0)()
		s := r.dialRaw()
		begin := time.Now()
		done := make(chan time.Duration)
		go func() {
			io.Copy(io.Discard, s.br)
			done <- time.Since(begin)
		}()
		for _, c := range []byte(handshake) {
			if _, err := s.conn.Write([]byte{c}); err != nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if d := <-done; d < 5*time.Second || d > 5*time.Second+time.Second {
			t.Errorf("cut after %v", d)
		}
		if n := r.gw.Stats().Accepted; n != 1 {
			t.Errorf("%d were accepted, want the bystander", n)
		}
	})
}

func TestHelloHasToComeInTime(t *testing.T) {
	for name, attack := range map[string]func(s *socket){
		"nothing": func(*socket) {},
		"a hello that does not end": func(s *socket) {
			s.conn.Write([]byte{final | opText, 0x80 | 126, 0x40, 0, 0, 0, 0, 0})
			for {
				if _, err := s.conn.Write([]byte{' '}); err != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		},
		"empty fragments": func(s *socket) {
			s.conn.Write(masked(opText, nil))
			for {
				if _, err := s.conn.Write(masked(0, nil)); err != nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		},
		"pings": func(s *socket) {
			for {
				if _, err := s.conn.Write(masked(final|9, nil)); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		},
		"half a header": func(s *socket) { s.conn.Write([]byte{final | opText}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWith(t, setup{Options: Options{Limits: Limits{Hello: 7 * time.Second}}})
				defer r.bystander(0)()
				s := r.dialRaw()
				begin := time.Now()
				s.upgrade()
				go attack(s)
				c := s.end()
				// There and back again, and there.
				if d := time.Since(begin); c.code != wire.CloseHelloTimeout || d != 7*time.Second+2*latency {
					t.Errorf("%v after %v", c, d)
				}
				time.Sleep(2*lingering + time.Second)
				if n := r.gw.Stats().Connections; n != 1 {
					t.Errorf("%d connections left, want the bystander's", n)
				}
			})
		})
	}
}

func TestFramesThatSayTheyAreHuge(t *testing.T) {
	for _, n := range []uint64{1 << 40, 1<<63 - 1, 1 << 63, 1<<64 - 1, 32<<10 + 1} {
		for _, when := range []string{"before hello", "later"} {
			t.Run(fmt.Sprintf("%d %s", n, when), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := startWith(t, setup{})
					defer r.bystander(0)()
					s := r.socket()
					if when == "later" {
						s.hello("")
					}
					junk := bytes.Repeat([]byte{' '}, 48<<10)
					if got := allocated(func() {
						s.conn.Write(append(binary.BigEndian.AppendUint64([]byte{final | opText, 0x80 | 127}, n), 0, 0, 0, 0))
						s.conn.Write(junk)
						if c := s.end(); c.code != wire.CloseTooBig && (n < 1<<63 || c.code != 1002 && c.code != 0) {
							t.Error(c)
						}
					}); got > 4<<20 {
						t.Errorf("%d bytes allocated", got)
					}
				})
			})
		}
	}
}

func TestTheGreatestMessageIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Limits: Limits{Message: 1000}}})
		s := r.welcome("")
		const ping = `{"t":"ping"}`
		s.ask(ping+strings.Repeat(" ", 1000-len(ping)), wire.Pong)
		s.send(ping + strings.Repeat(" ", 1001-len(ping)))
		if c := s.end(); c.code != wire.CloseTooBig {
			t.Error(c)
		}
	})
}

func TestAMessageHasToEndInTime(t *testing.T) {
	for name, fragment := range map[string][]byte{"empty": nil, "of a byte": {' '}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWith(t, setup{})
				defer r.bystander(0)()
				s := r.welcome("")
				time.Sleep(time.Minute / 10)
				begin := time.Now()
				go func() {
					first := byte(opText)
					for s.write(masked(first, fragment)); ; first = 0 {
						if _, err := s.conn.Write(masked(0, fragment)); err != nil {
							return
						}
						time.Sleep(10 * time.Millisecond)
					}
				}()
				c := s.end()
				if d := time.Since(begin); c.code != wire.CloseHelloTimeout || d != 10*time.Second+2*latency {
					t.Errorf("%v after %v", c, d)
				}
			})
		})
	}
}

func TestFragments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		defer r.bystander(0)()
		s := r.welcome("")
		in := func(text string, n int) (b []byte) {
			first := byte(opText)
			for ; len(text) > n; first = 0 {
				b = append(b, masked(first, []byte(text[:n]))...)
				b = append(b, masked(final|9, []byte("between"))...)
				text = text[n:]
			}
			return append(b, masked(final|first, []byte(text))...)
		}
		s.write(in(`{"t":"ping"}`, 1))
		s.expect(wire.Pong)
		if s.pongs != 11 {
			t.Errorf("%d of 11 pings between the fragments were answered", s.pongs)
		}
		s.write(masked(opText, []byte(`{"t":`)))
		time.Sleep(9 * time.Second)
		s.write(masked(final, []byte(`"ping"}`)))
		s.expect(wire.Pong)
		go func() {
			s.conn.Write(masked(opText, []byte("{")))
			for range 40_000 {
				if _, err := s.conn.Write(masked(0, []byte(" "))); err != nil {
					return
				}
			}
		}()
		if c := s.end(); c.code != wire.CloseTooBig {
			t.Error(c)
		}
	})
}

func TestWhatIsNoFrameEndsTheConnection(t *testing.T) {
	for _, c := range []struct {
		name  string
		first byte
		text  string
		code  int
	}{
		{"not UTF-8", final | opText, "{\"t\":\"ping\",\"x\":\"\xff\"}", wire.CloseInvalidUTF8},
		{"half of a surrogate pair in UTF-8", final | opText, "{\"t\":\"\xed\xa0\x80\"}", wire.CloseInvalidUTF8},
		{"overlong", final | opText, "{\"t\":\"\xc0\xaf\"}", wire.CloseInvalidUTF8},
		{"binary", final | 2, `{"t":"ping"}`, wire.CloseUnsupported},
		{"empty binary", final | 2, ``, wire.CloseUnsupported},
		{"empty", final | opText, ``, wire.CloseBadFrame},
		{"not JSON", final | opText, `hello`, wire.CloseBadFrame},
		{"half of it", final | opText, `{"t":"ping"`, wire.CloseBadFrame},
		{"more than it", final | opText, `{"t":"ping"}{}`, wire.CloseBadFrame},
		{"an array", final | opText, `[{"t":"ping"}]`, wire.CloseBadFrame},
		{"null", final | opText, `null`, wire.CloseBadFrame},
		{"deep", final | opText, `{"t":"ping","x":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`, wire.CloseBadFrame},
		{"deeper", final | opText, `{"t":"ping","x":` + strings.Repeat("[", 16000) + strings.Repeat("]", 16000) + `}`, wire.CloseBadFrame},
		{"a bit that means nothing", final | 0x40 | opText, `{"t":"ping"}`, 1002},
		{"an opcode that means nothing", final | 3, `{"t":"ping"}`, 1002},
		{"a long ping", final | 9, strings.Repeat("x", 126), 1002},
		{"half a ping", 9, "x", 1002},
		{"the rest of nothing", final, "x", 1002},
		{"a close code of nobody's", final | opClose, "\x03\xee", 1002},
		{"a short close", final | opClose, "\x03", 1002},
	} {
		for _, when := range []string{"before hello", "later"} {
			t.Run(c.name+" "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := startWith(t, setup{})
					s := r.socket()
					if when == "later" {
						s.hello("")
					}
					s.write(masked(c.first, []byte(c.text)))
					var last *wire.Frame
					var err error
					for f := (*wire.Frame)(nil); err == nil; {
						if f, err = s.next(); f != nil {
							last = f
						}
					}
					if got := err.(*closed); got.code != c.code {
						t.Errorf("%v, want %d", got, c.code)
					}
					if c.code != 1002 && (last == nil || last.Type != wire.Error || last.Code != wire.BadFrame || last.Message == "") {
						t.Error("no error frame said why")
					}
				})
			})
		}
	}
}

func TestTheEndIsSeenByAClientThatGoesOnSending(t *testing.T) {
	// On real sockets: closing one that has unread data resets it, and what was sent
	// is lost.
	r := startTCP(t, Options{})
	for name, c := range map[string]struct {
		bad  []byte
		code int
	}{
		"too big":    {masked(final|opText, bytes.Repeat([]byte{' '}, 64<<10)), wire.CloseTooBig},
		"no frame":   {masked(final|opText, []byte("x")), wire.CloseBadFrame},
		"no hello":   {masked(final|opText, []byte(`{"t":"ping"}`)), wire.CloseBadFrame},
		"binary":     {masked(final|2, []byte("x")), wire.CloseUnsupported},
		"no opcode":  {masked(final|3, []byte("x")), 1002},
		"long pings": {masked(final|9, make([]byte, 200)), 1002},
	} {
		t.Run(name, func(t *testing.T) {
			s := r.socket(t)
			b := bytes.Clone(c.bad)
			for range 200 {
				b = append(b, masked(final|opText, bytes.Repeat([]byte{' '}, 1000))...)
			}
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() { s.conn.Write(b) })
			if got := s.end(); got.code != c.code {
				t.Errorf("%v, want %d", got, c.code)
			}
			s.conn.Close()
		})
	}
}

// A tcpRig is a gateway on real sockets.
type tcpRig struct {
	gw  *Gateway
	hub *backplane.Hub
	url string
}

func startTCP(t testing.TB, o Options) *tcpRig {
	t.Helper()
	if o.Authorize == nil {
		o.Authorize = allowAll
	}
	bp := backplane.NewMemory(nil)
	hub := backplane.New(bp, nil)
	gw, err := New(hub, &o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: gw}
	go srv.Serve(l)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := gw.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		srv.Close()
		hub.Close(ctx)
		bp.Close()
	})
	return &tcpRig{gw, hub, l.Addr().String()}
}

func (r *tcpRig) socket(t testing.TB) *socket {
	t.Helper()
	c, err := net.Dial("tcp", r.url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	s := &socket{t: t, conn: c, br: bufio.NewReader(c)}
	s.upgrade()
	return s
}

// ends has a Trace tell the ends of one user's connections.
func ends(user string) (*Trace, <-chan error) {
	ch := make(chan error, 16)
	return &Trace{Disconnected: func(i Info, err error) {
		if i.User == user {
			ch <- err
		}
	}}, ch
}

func TestAPingFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trace, ended := ends("flood")
		r := startWith(t, setup{Options: Options{Trace: trace}})
		defer r.bystander(0)()
		s := r.welcome("flood")
		begin := time.Now()
		go func() {
			pings := bytes.Repeat(masked(final|9, nil), 1000)
			for range 100 {
				if _, err := s.conn.Write(pings); err != nil {
					return
				}
			}
		}()
		s.end()
		if err := <-ended; !strings.Contains(err.Error(), string(heartbeat.PingFlood)) || time.Since(begin) > heartbeat.DefaultInterval {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		if s.pongs > heartbeat.DefaultMaxPings {
			t.Errorf("%d pings were answered", s.pongs)
		}
		if st := r.gw.Stats(); st.Dead != 1 || st.Connections != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestPongsThatNobodyAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trace, ended := ends("flood")
		r := startWith(t, setup{Options: Options{Trace: trace}})
		defer r.bystander(0)()
		s := r.welcome("")
		s.silent = true
		pong := masked(final|10, []byte("1"))
		for range 50 {
			s.write(pong)
		}
		s.alive()
		// What came before does not count for what comes now.
		begin := time.Now()
		s.end()
		if d := time.Since(begin); d < 10*time.Second || d > 36*time.Second {
			t.Errorf("found dead after %v", d)
		}
		flood := r.welcome("flood")
		before := heap()
		for range 30 {
			if _, err := flood.conn.Write(bytes.Repeat(pong, 1000)); err != nil {
				break
			}
		}
		time.Sleep(time.Second)
		if after := heap(); after > before+1<<20 {
			t.Errorf("%d bytes more", after-before)
		}
		flood.end()
		if err := <-ended; !strings.Contains(err.Error(), string(heartbeat.PingFlood)) {
			t.Error(err)
		}
	})
}

func TestASlowReaderIsDroppedAndDelaysNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const write = 6 * time.Second
		ends := make(chan time.Time, 1)
		r := startWith(t, setup{Options: Options{
			Limits: Limits{Write: write},
			Trace: &Trace{Disconnected: func(i Info, err error) {
				if i.User == "slow" {
					ends <- time.Now()
				}
			}},
		}})
		defer r.bystander(0)()
		slow, fast := r.welcome("slow"), r.welcome("fast")
		for _, s := range []*socket{slow, fast} {
			s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		}
		slow.link.Stall(memnet.Down, true)
		fast.bytes = 0
		var full time.Time
		message := `"` + strings.Repeat("x", 8000) + `"`
		for i := range 150 {
			at := time.Now()
			r.publish("x", message)
			f := fast.expect(wire.Entries)
			d := time.Since(at)
			// The same frames, each with a header of 4 bytes.
			if full.IsZero() && fast.bytes+4*(i+1) > 64<<10 {
				full = at
				// The writer has both in hand, until it is seen to be stuck.
				d = max(latency, d-2*look)
			}
			if d != latency || len(f.Entries) != 1 {
				t.Fatalf("message %d: %d entries after %v", i, len(f.Entries), d)
			}
			time.Sleep(time.Until(at.Add(100 * time.Millisecond)))
		}
		if at := <-ends; at.Sub(full) < write || at.Sub(full) > write*5/4 {
			t.Errorf("dropped %v after it took nothing more, want %v", at.Sub(full), write)
		}
		if st := r.gw.Stats(); st.Slow != 1 || st.Connections != 2 {
			t.Errorf("%+v", st)
		}
	})
}

func TestManySlowReadersDelayNobodyForLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 200
		r := startWith(t, setup{net: memnet.Settings{Buffer: 16 << 10}, Options: Options{Limits: Limits{PerUser: -1}}})
		fast := r.welcome("fast")
		for range n {
			s := r.welcome("slow")
			s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
			s.link.Stall(memnet.Down, true)
		}
		fast.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed) // last in every list
		base := r.gw.Stats().Workers
		message := `"` + strings.Repeat("x", 9000) + `"`
		var worst time.Duration
		most := 0
		begin := time.Now()
		for range 60 {
			at := time.Now()
			r.publish("x", message)
			fast.expect(wire.Entries)
			worst = max(worst, time.Since(at))
			most = max(most, r.gw.Stats().Workers)
			time.Sleep(time.Until(at.Add(50 * time.Millisecond)))
		}
		// Within two looks as many again are found to be stuck.
		if worst > 60*look {
			t.Errorf("somebody else waited for %v", worst)
		}
		if most < n || most > 3*n {
			t.Errorf("%d workers for %d slow connections", most, n)
		}
		time.Sleep(time.Until(begin.Add(24 * time.Second)))
		r.publish("x", "1")
		fast.expect(wire.Entries)
		time.Sleep(time.Second)
		if st := r.gw.Stats(); st.Workers > base || st.Slow != n || st.Connections != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestAnswersThatAreNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Limits: Limits{Frames: -1, Write: time.Minute},
			Heartbeat: heartbeat.Config{Interval: time.Hour, Timeout: 10 * time.Minute}}})
		defer r.bystander(0)()
		s := r.welcome("")
		s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
		s.link.Stall(memnet.Down, true)
		r.publish("x", `"`+strings.Repeat("x", 100_000)+`"`) // somebody else is stuck with it
		time.Sleep(time.Second)
		// Each is answered with its topic.
		wrong := masked(final|opText, []byte(`{"t":"unsubscribe","topic":"`+strings.Repeat("x", 255)+`"}`))
		before := heap()
		for range 10_000 {
			if _, err := s.conn.Write(wrong); err != nil {
				break
			}
		}
		time.Sleep(time.Second)
		if after := heap(); after > before+2<<20 {
			t.Errorf("%d bytes more", after-before)
		}
		s.link.Stall(memnet.Down, false)
		if c := s.end(); c.code != wire.CloseSlow {
			t.Error(c)
		}
		time.Sleep(2 * lingering)
		if st := r.gw.Stats(); st.Slow != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// A connection that is closed while something is on its way is reset by the kernel, and
// there are systems where the client then does not see why it was closed.
func TestTheEndWaitsForTheClient(t *testing.T) {
	for _, bad := range []string{`x`, `{"t":"auth","token":"bad"}`} {
		for answers, want := range map[bool][2]time.Duration{true: {latency, 3 * latency}, false: {lingering, 2*lingering + 3*latency}} {
			synctest.Test(t, func(t *testing.T) {
				r := startWith(t, setup{Options: Options{Authorize: func(_ context.Context, a Access) (Grant, error) {
					if a.Token == "bad" {
						return Grant{}, ErrUnauthenticated
					}
					return Grant{}, nil
				}}})
				s := r.welcome("")
				s.send(bad)
				if c := s.end(); c.code == 0 {
					t.Fatal(c)
				}
				begin := time.Now()
				if answers {
					s.write(masked(final|opClose, []byte{3, 232}))
				} else {
					for range 10 { // which nobody minds
						s.write(masked(final|opText, []byte(`{"t":"ping"}`)))
						time.Sleep(lingering / 20)
					}
				}
				_, err := s.br.ReadByte()
				if d := time.Since(begin); err == nil || d < want[0] || d > want[1] {
					t.Errorf("%s, answered: %v: %v after %v", bad, answers, err, d)
				}
			})
		}
	}
}

func TestASubscriptionFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Limits: Limits{Topics: 5, Frames: -1}}})
		defer r.bystander(0)()
		s := r.welcome("")
		for i := range 5 {
			s.ask(fmt.Sprintf(`{"t":"subscribe","topic":"%d"}`, i), wire.Subscribed)
		}
		f := s.ask(`{"t":"subscribe","topic":"one more","ref":7}`, wire.Error)
		if f.Code != wire.TooManyTopics || f.Topic != "one more" || f.Ref != 7 {
			t.Errorf("%s", f.Append(nil))
		}
		s.ask(`{"t":"subscribe","topic":"3"}`, wire.Subscribed) // it has that already
		s.ask(`{"t":"unsubscribe","topic":"3"}`, wire.Unsubscribed)
		s.ask(`{"t":"subscribe","topic":"one more"}`, wire.Subscribed)
	})
}

func TestSubscribingAndUnsubscribingWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp := newGate()
		r := startWith(t, setup{bp: bp, Options: Options{Limits: Limits{Frames: -1}}})
		defer r.bystander(0)()
		s := r.welcome("")
		done := s.idle()
		bp.reads.close()
		time.Sleep(time.Second)
		synctest.Wait()
		goroutines := runtime.NumGoroutine()
		before := heap()
		for i := range 5000 {
			s.send(fmt.Sprintf(`{"t":"subscribe","topic":"%d","from":"%s"}`, i%10, "AAAAAAAAAAEAAAABAQ"))
			s.send(fmt.Sprintf(`{"t":"unsubscribe","topic":"%d"}`, i%10))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := runtime.NumGoroutine(); n > goroutines+40 {
			t.Errorf("%d goroutines more", n-goroutines)
		}
		if after := heap(); after > before+4<<20 {
			t.Errorf("%d bytes more", after-before)
		}
		if st := r.gw.Stats(); st.Subscriptions != 1 {
			t.Errorf("%+v", st)
		}
		bp.reads.open()
		s.conn.Close()
		<-done
	})
}

func TestAPublishFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Limits: Limits{Publishes: 10, Frames: -1}}})
		defer r.bystander(0)()
		s := r.welcome("anna")
		go func() {
			for i := range 200 {
				s.send(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"x","data":%d}`, i, i))
				time.Sleep(time.Millisecond)
			}
		}()
		stored := map[string]bool{}
		var acks, nacks int
		for range 200 {
			switch f, _ := s.next(); {
			case f.Type == wire.Ack && f.Outcome == wire.Committed:
				acks++
				stored[f.ID] = true
			case f.Type == wire.Nack && f.Outcome == wire.NotStored && f.Code == wire.TooFast && f.Retry > 0 && f.Retry <= 4100:
				nacks++
			default:
				t.Fatalf("%s", f.Append(nil))
			}
		}
		if acks < 40 || acks > 43 { // at once, and what 0.2 s bring
			t.Errorf("%d let through, want 40 and some", acks)
		}
		got := r.stored("x")
		for _, id := range got {
			if !stored[id] {
				t.Errorf("%s was refused, and is stored", id)
			}
		}
		if len(got) != acks {
			t.Errorf("%d stored, %d acknowledged", len(got), acks)
		}
		// It is for the client's own pace alone: after a while it may again.
		time.Sleep(time.Minute / 6)
		s.ask(`{"t":"publish","id":"later","topic":"x","data":1}`, wire.Ack)
	})
}

func TestPublishesWhileTheBackplaneHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp := newGate()
		r := startWith(t, setup{bp: bp, Options: Options{Limits: Limits{Pending: 7, Publishes: -1, Frames: -1}}})
		s := r.welcome("anna")
		bp.appends.close()
		outcome := map[string]string{}
		for i := range 20 {
			s.send(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"x","data":"%d"}`, i, i))
		}
		for i := 7; i < 20; i++ {
			f := s.expect(wire.Nack)
			outcome[f.ID] = f.Outcome
			if f.ID != fmt.Sprint(i) || f.Code != wire.TooManyPending || f.Retry == 0 || f.Outcome != wire.NotStored {
				t.Errorf("%s", f.Append(nil))
			}
		}
		begin := time.Now()
		f := s.expect(wire.Nack) // the first has taken too long
		if d := time.Since(begin); f.ID != "0" || f.Outcome != wire.Unknown || f.Code != wire.Unavailable || d < 9*time.Second || d > 11*time.Second {
			t.Errorf("%s after %v", f.Append(nil), d)
		}
		bp.appends.open()
		for i := 1; i < 7; i++ {
			if f := s.expect(wire.Ack); f.ID != fmt.Sprint(i) {
				t.Errorf("%s", f.Append(nil))
			}
		}
		r.holds("x", `"1"`, `"2"`, `"3"`, `"4"`, `"5"`, `"6"`)
	})
}

func TestPendingPublishesAreBoundedInBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp := newGate()
		r := startWith(t, setup{bp: bp, Options: Options{Limits: Limits{Pending: -1, Publishes: -1, Frames: -1}}})
		s := r.welcome("anna")
		bp.appends.close()
		data := strings.Repeat("x", 30<<10)
		n := 0
		for f := (*wire.Frame)(nil); f == nil; n++ {
			s.send(fmt.Sprintf(`{"t":"publish","id":"%d","topic":"x","data":"%s"}`, n, data))
			time.Sleep(10 * latency)
			if s.br.Buffered() > 0 || n > 100 {
				break
			}
			s.conn.SetReadDeadline(time.Now().Add(latency))
			if _, err := s.br.Peek(1); err == nil {
				break
			}
			s.conn.SetReadDeadline(time.Time{})
		}
		s.conn.SetReadDeadline(time.Time{})
		if f := s.expect(wire.Nack); f.Code != wire.TooManyPending || n > 10 {
			t.Errorf("%s after %d", f.Append(nil), n)
		}
		bp.appends.open()
		for i := range n {
			if f := s.expect(wire.Ack); f.ID != fmt.Sprint(i) {
				t.Errorf("%s", f.Append(nil))
			}
		}
	})
}

func TestAFrameFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Limits: Limits{Frames: 10}}})
		defer r.bystander(0)()
		s := r.welcome("")
		for range 40 {
			s.alive()
		}
		s.send(`{"t":"subscribe","topic":"x","ref":3}`)
		if f := s.expect(wire.Error); f.Code != wire.TooFast || f.Retry <= 0 || f.Retry > 4100 || f.Ref != 3 || f.Topic != "x" {
			t.Errorf("%s", f.Append(nil))
		}
		s.send(`{"t":"publish","topic":"x","id":"a","data":1}`)
		if f := s.expect(wire.Nack); f.Code != wire.TooFast || f.Outcome != wire.NotStored || f.ID != "a" || f.Retry <= 0 {
			t.Errorf("%s", f.Append(nil))
		}
		if st := r.gw.Stats(); st.Subscriptions != 1 || st.TooFast != 2 {
			t.Errorf("%+v", st)
		}
		time.Sleep(20 * time.Second)
		s.alive() // that was not far too fast
		s.conn.Write(bytes.Repeat(masked(final|opText, []byte(`{"t":"ping"}`)), 100))
		pongs := 0
		for {
			f, err := s.next()
			if err != nil {
				if c := err.(*closed); c.code != wire.CloseTooFast {
					t.Error(c)
				}
				break
			}
			if f.Type == wire.Pong {
				pongs++
			}
		}
		if pongs != 39 {
			t.Errorf("%d answered, want 4 times the rate less one", pongs)
		}
	})
}

func TestAnAskForAllOfHistory(t *testing.T) {
	for _, limit := range []int{100, -1} {
		for _, last := range []string{"9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616", strings.Repeat("9", 1000)} {
			synctest.Test(t, func(t *testing.T) {
				r := startWith(t, setup{Options: Options{Limits: Limits{History: limit}}})
				for i := range 300 {
					r.publish("x", fmt.Sprint(i))
				}
				s := r.welcome("")
				s.ask(`{"t":"subscribe","topic":"x","last":`+last+`}`, wire.Subscribed)
				r.publish("x", "300")
				n := 0
				for f := (*wire.Frame)(nil); f == nil || string(f.Entries[len(f.Entries)-1].Data) != "300"; {
					f = s.expect(wire.Entries)
					n += len(f.Entries)
				}
				if want := map[int]int{100: 101, -1: 301}[limit]; n != want {
					t.Errorf("%.20s gave %d messages, want %d", last, n, want)
				}
			})
		}
	}
}

func TestNumbersBeyondAllBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{})
		s := r.socket()
		s.send(`{"t":"hello","v":99999999999999999999999,"beat":315360000000000,"timeout":315360000000000,"window":1e400}`)
		if f := s.expect(wire.Welcome); f.Version != 1 || f.Beat != 25000 || f.Timeout != 10000 {
			t.Errorf("%s", f.Append(nil))
		}
		if f := s.ask(`{"t":"subscribe","topic":"x","ref":18446744073709551616}`, wire.Subscribed); f.Ref != 1<<53 {
			t.Errorf("%s", f.Append(nil))
		}
		s.send(`{"t":"publish","id":"1","topic":"x","data":1e999999999,"retry":315360000000}`)
		got := map[string]bool{} // in either order
		for range 2 {
			f, err := s.next()
			if err != nil {
				t.Fatal(err)
			}
			got[f.Type] = true
		}
		if !got[wire.Ack] || !got[wire.Entries] {
			t.Errorf("%v", got)
		}
		s.alive()
	})
}

func TestWhatAClientMayNotSay(t *testing.T) {
	long := func(n int) string { return strings.Repeat("x", n) }
	for _, c := range []struct{ why, frame, code, field string }{
		{"no type", `{}`, wire.BadFrame, "t"},
		{"a type that is no string", `{"t":7}`, wire.BadFrame, "t"},
		{"a long type", `{"t":"` + long(257) + `"}`, wire.BadFrame, "t"},
		{"an unknown type", `{"t":"fly","ref":7}`, wire.UnknownType, "t"},
		{"a second hello", `{"t":"hello","v":1}`, wire.OutOfState, "t"},
		{"for clients only", `{"t":"welcome","v":1}`, wire.OutOfState, "t"},
		{"for clients only", `{"t":"ok"}`, wire.OutOfState, "t"},
		{"for clients only", `{"t":"subscribed","topic":"x"}`, wire.OutOfState, "t"},
		{"for clients only", `{"t":"unsubscribed","topic":"x"}`, wire.OutOfState, "t"},
		{"for clients only", `{"t":"entries","topic":"x"}`, wire.OutOfState, "t"},
		{"for clients only", `{"t":"reset","topic":"x"}`, wire.OutOfState, "t"},
		{"for clients only", `{"t":"ack","id":"x"}`, wire.OutOfState, "t"},
		{"for clients only", `{"t":"nack","id":"x"}`, wire.OutOfState, "t"},
		{"for clients only", `{"t":"error"}`, wire.OutOfState, "t"},
		{"for clients only", `{"t":"goodbye"}`, wire.OutOfState, "t"},
		{"no topic", `{"t":"subscribe"}`, wire.BadTopic, "topic"},
		{"an empty topic", `{"t":"subscribe","topic":""}`, wire.BadTopic, "topic"},
		{"a long topic", `{"t":"subscribe","topic":"` + long(256) + `"}`, wire.BadTopic, "topic"},
		{"a topic that is none", `{"t":"subscribe","topic":7}`, wire.BadFrame, "topic"},
		{"a ref that is none", `{"t":"subscribe","topic":"x","ref":"7"}`, wire.BadFrame, "ref"},
		{"a negative ref", `{"t":"subscribe","topic":"x","ref":-1}`, wire.BadFrame, "ref"},
		{"half a ref", `{"t":"subscribe","topic":"x","ref":0.5}`, wire.BadFrame, "ref"},
		{"a position that is none", `{"t":"subscribe","topic":"x","from":"!"}`, wire.BadPosition, "from"},
		{"a long position", `{"t":"subscribe","topic":"x","from":"` + long(65) + `"}`, wire.BadPosition, "from"},
		{"a number for a position", `{"t":"subscribe","topic":"x","from":7}`, wire.BadFrame, "from"},
		{"65 positions", `{"t":"subscribe","topic":"x","from":["AAAAAAAAAAEAAAABAQ"` + strings.Repeat(`,"AAAAAAAAAAEAAAABAQ"`, 64) + `]}`, wire.BadFrame, "from"},
		{"a bad one among them", `{"t":"subscribe","topic":"x","from":["!"]}`, wire.BadPosition, "from"},
		{"a bad floor", `{"t":"subscribe","topic":"x","floor":"!"}`, wire.BadPosition, "floor"},
		{"less than none", `{"t":"subscribe","topic":"x","last":-1}`, wire.BadFrame, "last"},
		{"an exponent", `{"t":"subscribe","topic":"x","last":1e3}`, wire.BadFrame, "last"},
		{"not subscribed to", `{"t":"unsubscribe","topic":"x","ref":7}`, wire.NotSubscribed, "topic"},
		{"no topic", `{"t":"unsubscribe"}`, wire.NotSubscribed, "topic"},
		{"no id", `{"t":"publish","topic":"x","data":1}`, wire.BadFrame, "id"},
		{"a long id", `{"t":"publish","topic":"x","data":1,"id":"` + long(129) + `"}`, wire.BadFrame, "id"},
		{"an id that is none", `{"t":"publish","topic":"x","data":1,"id":7}`, wire.BadFrame, "id"},
		{"no topic", `{"t":"publish","id":"a","data":1}`, wire.BadTopic, "topic"},
		{"a long topic", `{"t":"publish","id":"a","data":1,"topic":"` + long(256) + `"}`, wire.BadTopic, "topic"},
		{"no payload", `{"t":"publish","id":"a","topic":"x"}`, wire.BadFrame, "data"},
		{"a long key", `{"t":"publish","id":"a","topic":"x","data":1,"key":"` + long(256) + `"}`, wire.BadFrame, "key"},
		{"a key that is none", `{"t":"publish","id":"a","topic":"x","data":1,"key":[]}`, wire.BadFrame, "key"},
		{"not base64", `{"t":"publish","id":"a","topic":"x","bin":"A"}`, wire.BadFrame, "bin"},
		{"a text that is none", `{"t":"publish","id":"a","topic":"x","text":7}`, wire.BadFrame, "text"},
		{"two payloads", `{"t":"publish","id":"a","topic":"x","text":"a","data":1}`, wire.BadFrame, "data"},
		{"no topic", `{"t":"ephemeral","data":1}`, wire.BadTopic, "topic"},
		{"no payload", `{"t":"ephemeral","topic":"x"}`, wire.BadFrame, "data"},
		{"a long token", `{"t":"auth","token":"` + long(8193) + `"}`, wire.BadFrame, "token"},
		{"a token that is none", `{"t":"auth","token":7}`, wire.BadFrame, "token"},
	} {
		t.Run(c.why+" "+c.frame[:min(len(c.frame), 30)], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startWith(t, setup{})
				s := r.welcome("")
				s.send(c.frame)
				f, err := s.next()
				if err != nil {
					t.Fatal(err)
				}
				nack := strings.Contains(c.frame, `"publish"`) && strings.Contains(c.frame, `"id":"a"`)
				if (f.Type == wire.Nack) != nack || !nack && f.Type != wire.Error || f.Code != c.code || f.Field != c.field || f.Message == "" {
					t.Errorf("%s", f.Append(nil))
				}
				if nack && (f.ID != "a" || f.Outcome != wire.NotStored) {
					t.Errorf("%s", f.Append(nil))
				}
				if strings.Contains(c.frame, `"ref":7}`) && c.code != wire.UnknownType && f.Ref != 7 {
					t.Errorf("no ref in %s", f.Append(nil))
				}
				s.alive()
				if st := r.gw.Stats(); st.BadFrames != 1 || st.Subscriptions != 0 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

func TestOnlyHelloComesFirst(t *testing.T) {
	for frame, want := range map[string]struct {
		close       int
		code, field string
	}{
		`{"t":"ping"}`:                         {wire.CloseBadFrame, wire.OutOfState, "t"},
		`{"t":"subscribe","topic":"x"}`:        {wire.CloseBadFrame, wire.OutOfState, "t"},
		`{"t":"publish","id":"1","topic":"x"}`: {wire.CloseBadFrame, wire.OutOfState, "t"},
		`{"t":"auth","token":"x"}`:             {wire.CloseBadFrame, wire.OutOfState, "t"},
		`{"t":"fly"}`:                          {wire.CloseBadFrame, wire.OutOfState, "t"},
		`{"t":"hello"}`:                        {wire.CloseVersion, wire.BadFrame, "v"},
		`{"t":"hello","v":0}`:                  {wire.CloseVersion, wire.BadFrame, "v"},
		`{"t":"hello","v":"1"}`:                {wire.CloseBadFrame, wire.BadFrame, "v"},
		`{"t":"hello","v":1,"token":7}`:        {wire.CloseBadFrame, wire.BadFrame, "token"},
		`{"t":"hello","v":1,"beats":"yes"}`:    {wire.CloseBadFrame, wire.BadFrame, "beats"},
		`{"v":1}`:                              {wire.CloseBadFrame, wire.BadFrame, "t"},
		`{"t":"hello","v":1,"token":"` + strings.Repeat("x", 8193) + `"}`: {wire.CloseBadFrame, wire.BadFrame, "token"},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := startWith(t, setup{})
			s := r.socket()
			f := s.ask(frame, wire.Error)
			if f.Code != want.code || f.Field != want.field {
				t.Errorf("%.40s: %s", frame, f.Append(nil))
			}
			if c := s.end(); c.code != want.close {
				t.Errorf("%.40s: %v", frame, c)
			}
		})
	}
}

func TestAPanicInAuthorizeIsOneClientsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var panics Action
		r := startWith(t, setup{Options: Options{Authorize: func(_ context.Context, a Access) (Grant, error) {
			if a.Action == panics && (a.User == "anna" || a.Token == "anna") {
				panic("secret\n")
			}
			return Grant{User: a.Token}, nil
		}}})
		defer r.bystander(0)()
		s := r.welcome("anna")
		panics = Subscribe
		if f := s.ask(`{"t":"subscribe","topic":"x","ref":1}`, wire.Error); f.Code != wire.Unavailable || f.Ref != 1 || f.Topic != "x" {
			t.Errorf("%s", f.Append(nil))
		}
		panics = Publish
		if f := s.ask(`{"t":"publish","topic":"x","id":"1","data":1}`, wire.Nack); f.Code != wire.Unavailable || f.Outcome != wire.NotStored {
			t.Errorf("%s", f.Append(nil))
		}
		if f := s.ask(`{"t":"ephemeral","topic":"x","data":1}`, wire.Error); f.Code != wire.Unavailable || f.Topic != "x" {
			t.Errorf("%s", f.Append(nil))
		}
		panics = Renew
		if f := s.ask(`{"t":"auth","token":"b","ref":3}`, wire.Error); f.Code != wire.Unavailable || f.Ref != 3 {
			t.Errorf("%s", f.Append(nil))
		}
		s.alive()
		panics = Connect
		other := r.socket()
		if f := other.ask(`{"t":"hello","v":1,"token":"anna"}`, wire.Error); f.Code != wire.Unavailable {
			t.Errorf("%s", f.Append(nil))
		}
		if c := other.end(); c.code != wire.CloseTryLater {
			t.Error(c)
		}
		s.alive()
		panics = ""
		s.ask(`{"t":"subscribe","topic":"x"}`, wire.Subscribed)
	})
}

// A logbook is a slog.Handler that fails the test for what may not stand in a log.
type logbook struct {
	t       testing.TB
	secrets []string
	mu      *sync.Mutex
	lines   *[]string
}

func (l logbook) Enabled(context.Context, slog.Level) bool { return true }
func (l logbook) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l logbook) WithGroup(string) slog.Handler            { return l }
func (l logbook) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool { line += " " + a.Key + "=" + a.Value.String(); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	*l.lines = append(*l.lines, line)
	for _, c := range line {
		if c < ' ' || c > '~' {
			l.t.Errorf("%q is in the log: %q", c, line)
			break
		}
	}
	if len(line) > 1000 {
		l.t.Errorf("a line of %d bytes in the log: %.200q", len(line), line)
	}
	for _, s := range l.secrets {
		if strings.Contains(line, s) {
			l.t.Errorf("a secret is in the log: %s", line)
		}
	}
	return nil
}

func TestNothingOfAClientsIsLoggedRaw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logbook{t, []string{"SECRET", "PAYLOAD"}, new(sync.Mutex), new([]string)}
		nasty := "x\n\r\x1b[31m\u2028\u2029\x00\x7f\u009b\u202e\ufeff" + strings.Repeat("y", 200)
		quoted := `x\n\r\u001b[31m\u2028\u2029\u0000\u007f\u009b\u202e\ufeff` + strings.Repeat("y", 200)
		bp := newGate()
		failing := false
		r := startWith(t, setup{bp: bp, Options: Options{
			Logger: slog.New(log),
			Authorize: func(_ context.Context, a Access) (Grant, error) {
				switch {
				case failing && a.Action == Subscribe:
					return Grant{}, errors.New("no database for " + a.Topic + " and " + a.User)
				case failing && a.Action == Renew:
					panic("no database for " + a.Topic + nasty)
				}
				return Grant{User: nasty}, nil
			},
		}})
		for _, origin := range []string{"https://evil.example", "null", "http://\x1b[31m", "http://" + strings.Repeat("y", 60<<10), "http://a\u2028b"} {
			s := r.dialRaw()
			s.write([]byte(handshake + "Origin: " + origin + "\r\n\r\n"))
			if status := s.response(); status != 403 && status != 400 { // of which some are net/http's
				t.Errorf("%.20q: %d", origin, status)
			}
		}
		s := r.socket()
		s.hello("SECRET" + quoted)
		failing = true
		s.ask(`{"t":"subscribe","topic":"`+quoted+`"}`, wire.Error)
		s.ask(`{"t":"auth","token":"SECRET`+quoted+`"}`, wire.Error)
		failing = false
		bp.appends.close()
		s.ask(`{"t":"publish","topic":"`+quoted+`","id":"`+quoted[:80]+`","key":"`+quoted[:80]+`","data":"PAYLOAD"}`, wire.Nack)
		s.ask(`{"t":"`+quoted+`"}`, wire.Error)
		s.ask(`{"t":"subscribe","topic":"`+strings.Repeat("z", 30<<10)+`"}`, wire.Error)
		s.write(masked(final|opClose, append([]byte{15, 160}, nasty[:100]...)))
		s.end()
		// And one that is told why.
		s = r.welcome("SECRET")
		s.send("PAYLOAD" + nasty)
		s.end()
		bp.appends.open()
		time.Sleep(5 * time.Second)
		log.mu.Lock()
		defer log.mu.Unlock()
		if n := len(*log.lines); n < 8 {
			t.Errorf("only %d lines: %q", n, *log.lines)
		}
	})
}

func TestAnotherOnesPositionIsNoCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startWith(t, setup{Options: Options{Authorize: func(_ context.Context, a Access) (Grant, error) {
			if a.Action != Connect && a.User == "bert" && a.Topic != "common" {
				return Grant{}, fmt.Errorf("so says the database: %w", ErrForbidden)
			}
			return Grant{User: a.Token}, nil
		}}})
		p := r.publish("private", "1")
		r.publish("private", "2")
		b := r.welcome("bert")
		var answers []string
		for _, ask := range []string{
			`{"t":"subscribe","topic":"TOPIC","ref":1}`,
			`{"t":"subscribe","topic":"TOPIC","ref":1,"from":` + pos(p) + `}`,
			`{"t":"subscribe","topic":"TOPIC","ref":1,"last":10}`,
		} {
			for _, topic := range []string{"private", "nowhere"} {
				b.send(strings.ReplaceAll(ask, "TOPIC", topic))
				_, payload, err := b.frame()
				if err != nil {
					t.Fatal(err)
				}
				answers = append(answers, strings.ReplaceAll(string(payload), topic, "TOPIC"))
			}
		}
		for _, a := range answers {
			if a != answers[0] || !strings.Contains(a, wire.Forbidden) {
				t.Errorf("%s differs from %s", a, answers[0])
			}
		}
		var nacks []string
		for _, topic := range []string{"private", "nowhere"} {
			b.send(`{"t":"publish","id":"1","topic":"` + topic + `","data":1}`)
			_, payload, _ := b.frame()
			nacks = append(nacks, string(payload))
		}
		if nacks[0] != nacks[1] {
			t.Errorf("%q", nacks)
		}
		// Where he may read, it is a position of another history.
		r.publish("common", "3")
		b.ask(`{"t":"subscribe","topic":"common","from":`+pos(p)+`}`, wire.Subscribed)
		if f := b.expect(wire.Reset); f.Reason != string(replay.ReasonEpoch) {
			t.Errorf("%s", f.Append(nil))
		}
		if f := b.expect(wire.Entries); len(f.Entries) != 1 || string(f.Entries[0].Data) != "3" {
			t.Errorf("%s", f.Append(nil))
		}
	})
}
