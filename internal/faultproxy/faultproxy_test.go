package faultproxy

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-ws/holdfast/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

// patience is what may be waited for in vain before a test fails.
const patience = 20 * time.Second

// target accepts the connections that a proxy makes.
type target struct {
	addr     string
	accepted chan *net.TCPConn
}

func newTarget(t *testing.T) *target {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &target{addr: ln.Addr().String(), accepted: make(chan *net.TCPConn)}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			select {
			case g.accepted <- c.(*net.TCPConn):
			case <-stop:
				c.Close()
			}
		}
	})
	t.Cleanup(func() {
		close(stop)
		ln.Close()
		wg.Wait()
	})
	return g
}

// next returns the target's end of the next connection.
func (g *target) next(t *testing.T) *net.TCPConn {
	t.Helper()
	select {
	case c := <-g.accepted:
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		return c
	case <-time.After(patience):
		t.Fatal("the target saw no connection")
		return nil
	}
}

func newProxy(t *testing.T) (*Proxy, *target) {
	t.Helper()
	g := newTarget(t)
	p, err := New(g.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p, g
}

func dial(t *testing.T, p *Proxy) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", p.Addr(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// pair returns both ends of a new connection, over which a byte has gone both
// ways, so that the proxy's goroutines are waiting for more.
func pair(t *testing.T, p *Proxy, g *target) (client, server *net.TCPConn) {
	t.Helper()
	client = dial(t, p)
	server = g.next(t)
	send(t, client, "?")
	receive(t, server, "?")
	send(t, server, "!")
	receive(t, client, "!")
	return client, server
}

func send(t *testing.T, c *net.TCPConn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c *net.TCPConn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); string(got[:n]) != want {
		t.Fatalf("received %q, %v; want %q", got[:n], err, want)
	}
}

// silent looks for a moment whether anything comes. It cannot fail by chance: what
// comes late is not seen.
func silent(t *testing.T, c *net.TCPConn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	defer c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(make([]byte, 100)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("received %d bytes, %v; want silence", n, err)
	}
}

// isReset fails unless the next thing that c hears is an RST.
func isReset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 100)); n > 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("received %d bytes, %v; want a reset", n, err)
	}
}

// isRefused fails unless a new connection is reset.
func isRefused(t *testing.T, p *Proxy) {
	t.Helper()
	c, err := net.DialTimeout("tcp", p.Addr(), patience)
	if errors.Is(err, syscall.ECONNRESET) {
		return // the reset was quicker than the dialer
	} else if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	isReset(t, c.(*net.TCPConn))
}

// isEOF fails unless the next thing that c hears is a FIN.
func isEOF(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 100)); n > 0 || err != io.EOF {
		t.Fatalf("received %d bytes, %v; want EOF", n, err)
	}
}

// eventually waits until ok returns true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func TestBytesAndFINsPassBothWays(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	send(t, client, "question")
	client.CloseWrite()
	receive(t, server, "question")
	isEOF(t, server)
	send(t, server, "an answer after the client's FIN")
	receive(t, client, "an answer after the client's FIN")
	server.CloseWrite()
	isEOF(t, client)
	eventually(t, "the proxy forgets the connection", func() bool { return len(p.all()) == 0 })
}

func TestMuchDataPassesUnchanged(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	sent := bytes.Repeat([]byte("0123456789abcde"), 1<<16)
	var wg sync.WaitGroup
	wg.Go(func() {
		client.Write(sent)
		client.CloseWrite()
	})
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, sent) {
		t.Errorf("received %d bytes, %v, of %d, or not the same ones", len(got), err, len(sent))
	}
	wg.Wait()
}

func TestAResetOfOneEndIsAResetForTheOther(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	reset(client)
	isReset(t, server)
	client, server = pair(t, p, g)
	reset(server)
	isReset(t, client)
}

func TestDelayHoldsChunksBackBothWays(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	p.Delay.Store(int64(time.Hour))
	send(t, client, "up")
	send(t, server, "down")
	client.CloseWrite()
	silent(t, client)
	silent(t, server)
	p.Delay.Store(1)
	receive(t, server, "up")
	receive(t, client, "down")
	isEOF(t, server)
}

func TestAChunkIsLateByTheDelay(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	p.Delay.Store(int64(20 * time.Millisecond))
	before := time.Now()
	send(t, client, "late")
	receive(t, server, "late")
	if late := time.Since(before); late < 20*time.Millisecond { // it may be more on a busy machine
		t.Errorf("the chunk came after %v", late)
	}
}

func TestAHoleUpSwallowsBytesAndFIN(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	p.HoleUp.Store(true)
	send(t, client, "lost")
	send(t, server, "kept")
	receive(t, client, "kept")
	client.CloseWrite()
	silent(t, server)
	send(t, server, "still kept")
	receive(t, client, "still kept")
	p.ResetAll()
	isReset(t, server) // and nothing before it
	isReset(t, client)
}

func TestAHoleDownSwallowsBytesAndFIN(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	p.HoleDown.Store(true)
	send(t, server, "lost")
	server.CloseWrite()
	send(t, client, "kept")
	receive(t, server, "kept")
	silent(t, client)
	p.ResetAll()
	isReset(t, client)
	isReset(t, server)
}

func TestNeitherEndHearsOfTheOtherThroughTwoHoles(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	p.HoleUp.Store(true)
	p.HoleDown.Store(true)
	send(t, client, "lost")
	send(t, server, "lost")
	reset(server) // its RST is lost as well
	silent(t, client)
	late := dial(t, p) // what listens is the kernel, and it is well
	send(t, late, "lost")
	silent(t, late)
	p.ResetAll()
	isReset(t, client)
	isReset(t, late)
}

func TestAStreamThatLostBytesStaysSilentAfterHeal(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	idle, server2 := pair(t, p, g)
	p.HoleUp.Store(true)
	send(t, client, "lost")
	eventually(t, "the bytes reach the hole", func() bool {
		for _, l := range p.all() {
			if l.up.lost.Load() {
				return true
			}
		}
		return false
	})
	p.Heal()
	send(t, client, "after a gap, which no TCP stream has")
	silent(t, server)
	send(t, idle, "lost nothing")
	receive(t, server2, "lost nothing")
	p.ResetAll()
	isReset(t, server)
}

// The kernel of a client that is gone answers data with an RST. It goes up, where
// the hole is, so the server may go on believing.
func TestAClientThatDiedBehindAHoleIsNotGivenAwayByItsKernel(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	p.HoleUp.Store(true)
	reset(client)
	l := p.all()[0]
	eventually(t, "a write to the dead client fails", func() bool {
		send(t, server, "are you there?")
		return l.down.lost.Load()
	})
	send(t, server, "really?")
	silent(t, server)
	p.ResetAll()
	isReset(t, server)
}

func TestStallIsBackPressureAndLosesNothing(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	p.Stall.Store(true)
	// Writes until the kernel takes no more for a while: a write that got through
	// would let the next one in.
	block := make([]byte, 64<<10)
	for i := range block {
		block[i] = byte(i % 251)
	}
	sent := 0
	for sent < 1<<30 {
		client.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := client.Write(block)
		sent += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if sent >= 1<<30 {
		t.Fatal("a gigabyte was written into a stalled connection")
	}
	client.CloseWrite()
	silent(t, server)
	p.Heal()
	got, err := io.ReadAll(server)
	if err != nil || len(got) != sent {
		t.Fatalf("received %d bytes, %v; want %d", len(got), err, sent)
	}
	for i, b := range got {
		if b != byte(i%len(block)%251) {
			t.Fatalf("byte %d of %d is wrong", i, len(got))
		}
	}
}

func TestStallAlsoHoldsWhatItsReadersWereWaitingFor(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	p.Stall.Store(true)
	send(t, client, "up")
	send(t, server, "down")
	silent(t, server)
	silent(t, client)
	p.Stall.Store(false)
	receive(t, server, "up")
	receive(t, client, "down")
}

func TestACutDownEndsInsideOfAMessage(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	other, server2 := pair(t, p, g)
	p.CutDown.Store(7)
	send(t, client, "a message the other way is not cut")
	receive(t, server, "a message the other way is not cut")
	send(t, server, "a message that is cut")
	receive(t, client, "a messa")
	isReset(t, client)
	isReset(t, server)
	send(t, server2, "a message after that")
	receive(t, other, "a message after that")
}

func TestACutUpCountsOverMessages(t *testing.T) {
	p, g := newProxy(t)
	client, server := pair(t, p, g)
	p.CutUp.Store(7)
	for _, text := range []string{"123", "456"} {
		send(t, client, text)
		receive(t, server, text)
	}
	send(t, client, "789")
	receive(t, server, "7")
	isReset(t, server)
	isReset(t, client)
	if n := p.CutUp.Load(); n != 0 {
		t.Errorf("the knob is %d afterwards", n)
	}
}

func TestACutThatManyConnectionsShareIsTakenOnce(t *testing.T) {
	p, _ := newProxy(t)
	p.CutUp.Store(1000)
	var mu sync.Mutex // guards passed, lasts
	passed, lasts := 0, 0
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				n, last := take(&p.CutUp, 3)
				mu.Lock()
				passed += n
				if last {
					lasts++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	// One call got 1 byte of 3, and all others what they asked for.
	if lasts != 1 || passed != 400*3-2 {
		t.Errorf("%d were last and %d bytes passed; want 1 and %d", lasts, passed, 400*3-2)
	}
}

func TestResetAllResetsBothEndsOfEveryConnection(t *testing.T) {
	p, g := newProxy(t)
	var ends []*net.TCPConn
	for range 3 {
		client, server := pair(t, p, g)
		ends = append(ends, client, server)
	}
	p.ResetAll()
	for _, c := range ends {
		isReset(t, c)
	}
	pair(t, p, g) // the next one works
}

func TestRefuseResetsWhoeverConnects(t *testing.T) {
	p, g := newProxy(t)
	before, server := pair(t, p, g)
	p.Refuse.Store(true)
	isRefused(t, p)
	send(t, before, "untouched")
	receive(t, server, "untouched")
	p.Heal()
	pair(t, p, g) // and it is the next that the target sees
}

func TestSwallowAcceptsAndHangs(t *testing.T) {
	p, g := newProxy(t)
	p.Swallow.Store(true)
	c := dial(t, p)
	send(t, c, "hello?")
	silent(t, c)
	eventually(t, "the connection is accepted", func() bool { return len(p.all()) == 1 })
	p.Heal()
	silent(t, c)
	pair(t, p, g) // it is this one that the target sees, not the first
	p.ResetAll()
	isReset(t, c)
}

func TestANewTargetIsForNewConnections(t *testing.T) {
	p, one := newProxy(t)
	two := newTarget(t)
	client, server := pair(t, p, one)
	p.SetTarget(two.addr)
	pair(t, p, two)
	send(t, client, "untouched")
	receive(t, server, "untouched")
}

func TestATargetThatIsDownLooksLikeAReset(t *testing.T) {
	p, _ := newProxy(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	p.SetTarget(ln.Addr().String())
	isRefused(t, p)
}

func TestCloseEndsConnectionsInEveryState(t *testing.T) {
	for name, prepare := range map[string]func(t *testing.T, p *Proxy, client *net.TCPConn){
		"idle": func(*testing.T, *Proxy, *net.TCPConn) {},
		"delayed": func(t *testing.T, p *Proxy, client *net.TCPConn) {
			p.Delay.Store(int64(time.Hour))
			send(t, client, "held back")
		},
		"stalled": func(t *testing.T, p *Proxy, client *net.TCPConn) {
			p.Stall.Store(true)
			send(t, client, "held back")
		},
		"holed": func(t *testing.T, p *Proxy, client *net.TCPConn) {
			p.HoleUp.Store(true)
			p.HoleDown.Store(true)
			send(t, client, "lost")
		},
		"swallowed": func(t *testing.T, p *Proxy, _ *net.TCPConn) {
			p.Swallow.Store(true)
			dial(t, p)
		},
		"half closed": func(_ *testing.T, _ *Proxy, client *net.TCPConn) { client.CloseWrite() },
		"blocked in a write": func(t *testing.T, p *Proxy, client *net.TCPConn) {
			// Nobody reads at the target.
			for {
				client.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
				if _, err := client.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, g := newProxy(t)
			client, _ := pair(t, p, g)
			prepare(t, p, client)
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				p.Close()
				p.Close()
			}()
			select {
			case <-closed:
			case <-time.After(patience):
				t.Fatal("Close does not return")
			}
			isReset(t, client)
			if c, err := net.Dial("tcp", p.Addr()); err == nil {
				c.Close()
				t.Error("a closed proxy accepts connections")
			}
		})
	}
}

func TestKnobsMayBeTurnedWhileConnectionsComeAndGo(t *testing.T) {
	p, g := newProxy(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // a target that echoes
		for {
			select {
			case c := <-g.accepted:
				wg.Go(func() {
					defer c.Close()
					io.Copy(c, c)
				})
			case <-stop:
				return
			}
		}
	})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.Dial("tcp", p.Addr())
				if err != nil {
					continue
				}
				c.SetDeadline(time.Now().Add(20 * time.Millisecond))
				c.Write([]byte("to and fro"))
				io.ReadFull(c, make([]byte, 10))
				c.Close()
			}
		})
	}
	for range 50 {
		p.Refuse.Store(true)
		p.CutDown.Store(5)
		p.SetTarget(g.addr)
		p.Heal()
		p.Swallow.Store(true)
		p.HoleDown.Store(true)
		p.Delay.Store(int64(time.Millisecond))
		p.ResetAll()
		p.Heal()
		p.Stall.Store(true)
		p.Heal()
	}
	close(stop)
	p.Close()
	wg.Wait()
}
