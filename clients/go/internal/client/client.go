// Package client is a client from start to end: the task described, the data opened, one session after another, the final
// model kept.
package client

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"fedstream/client/internal/backoff"
	"fedstream/client/internal/fault"
	"fedstream/client/internal/identity"
	"fedstream/client/internal/link"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/session"
	"fedstream/client/internal/store"
	"fedstream/client/internal/task"
	"fedstream/client/internal/work"
)

// Software is what a hello says of this program.
const Software = "fedstream-go 0.1.0"

// Being superseded twice within this time means that another process uses the name. Once may be a stream of our own that
// a broken network delivered late.
const rivalSpan = 5 * time.Minute

// A Config has what a site's operator decides.
type Config struct {
	Server      string
	Name        string
	Data        string
	Out         string
	StateDir    string
	Trust       *link.Trust
	Identity    *identity.Folder // whose certificate is renewed; nil for none
	Limits      work.Limits
	Encodings   []pb.Encoding // that this site takes for its updates, besides raw
	GiveUpAfter time.Duration // without the server; 0 for never
}

// A Client is one site's part in one federation.
type Client struct {
	config     Config
	task       task.Task
	log        *slog.Logger
	connection *link.Connection
	store      *store.Store
	place      *place
	sessions   int64
	superseded time.Time
	saved      string

	mu        sync.Mutex
	session   *session.Session // guarded by mu, like the next; nil between two
	isLeaving bool
}

// errLeft says that the operator has stopped this client, and the server knows.
var errLeft = errors.New("left")

// A place is where the federation's task is worked on.
type place struct {
	federation string
	settings   map[string]string
	training   task.Training
	bench      *work.Bench
}

// New makes a client.
func New(config Config, learned task.Task, log *slog.Logger) *Client {
	return &Client{config: config, task: learned, log: log, connection: link.New(config.Server, config.Trust)}
}

// Run takes part until the federation ends, and gives what to say to the operator.
func (c *Client) Run(ctx context.Context) (string, error) {
	var err error
	if c.store, err = store.Open(c.config.StateDir); errors.Is(err, store.ErrInUse) {
		return "", fault.Stopf(fault.BadConfiguration,
			"another client uses %s: stop it, or give this one another --name or --state-dir", c.config.StateDir)
	} else if err != nil {
		return "", fault.Stopf(fault.BadConfiguration,
			"the folder for what must survive a restart cannot be used: %v", err)
	}
	defer c.store.Close()
	if err := c.requireOut(); err != nil {
		return "", err
	}
	defer c.connection.Close()
	defer c.leavePlace("the client stops")
	patience := backoff.Usual
	patience.GiveUpAfter = c.config.GiveUpAfter
	try := backoff.Try{
		Doing: "talking to the server", HowFar: func() int64 { return c.sessions }, Patience: patience, Log: c.log,
	}
	var outcome *pb.FederationOutcome
	err = try.Until(ctx, func(ctx context.Context) (err error) {
		outcome, err = c.oneSession(ctx)
		return c.judge(err)
	})
	if fault.IsTrouble(err) || fault.Refused(err, fault.LimitExceeded) != nil { // these are waited for
		return "", fault.Stopf(fault.Unreachable,
			"no contact to %s for %v: %v", c.config.Server, c.config.GiveUpAfter, err)
	}
	if err != nil {
		return "", err
	}
	if err := c.store.Forget(); err != nil {
		c.log.Warn("what this federation needed could not be removed", "folder", c.config.StateDir, "because", err.Error())
	}
	return "federation finished: " + outcome.GetReason() + "\nsaved " + c.saved, nil
}

// Leave tells the server that this client goes; false if there is no session to tell it in. Run ends soon after.
func (c *Client) Leave(reason string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isLeaving = true
	if c.session == nil {
		return false
	}
	c.session.Leave(reason)
	return true
}

func (c *Client) oneSession(ctx context.Context) (*pb.FederationOutcome, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if folder := c.config.Identity; folder != nil {
		if folder.RenewIfDue(ctx, c.connection, c.log) {
			c.connection.Close()
		}
		// And during the session, which comes back with the next certificate.
		go folder.KeepRenewed(ctx, c.connection, c.log, c.connection.Close)
	}
	described, err := c.connection.DescribeTask(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.prepare(described); err != nil {
		return nil, err
	}
	stream, err := c.connection.Negotiate(ctx)
	if err != nil {
		return nil, err
	}
	talk := &session.Session{
		Stream:    stream,
		Bench:     c.place.bench,
		Schema:    c.place.training.Schema(),
		Log:       c.log,
		OnWelcome: func() { c.sessions++ },
		Collect:   func(outcome *pb.FederationOutcome) error { return c.collect(ctx, outcome) },
	}
	c.setSession(talk)
	defer c.setSession(nil)
	return talk.Run(ctx, c.hello())
}

func (c *Client) setSession(talk *session.Session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session = talk
}

// judge says which refusals end a client, and with what.
func (c *Client) judge(err error) error {
	c.mu.Lock()
	isLeaving := c.isLeaving
	c.mu.Unlock()
	if isLeaving && err != nil {
		return errLeft
	}
	refusal := fault.Refused(err)
	if refusal == nil {
		return err
	}
	switch refusal.Reason {
	case fault.LimitExceeded:
		return err
	case fault.Superseded:
		return c.judgeRival()
	case fault.Unauthenticated, fault.PermissionDenied, fault.NameMismatch:
		return fault.NotLetIn(refusal)
	}
	return fault.Stopf(fault.Defect,
		"the server refused this client's message (%s): %s. This is a defect; please report it with the "+
			"log", refusal.Reason, refusal.Message)
}

func (c *Client) judgeRival() error {
	before := c.superseded
	c.superseded = time.Now()
	if before.IsZero() || time.Since(before) >= rivalSpan {
		return fault.Troublef("a newer session of the same name took over")
	}
	return fault.Stopf(fault.Replaced,
		"another client called %s took over: names must be unique, give another --name", c.config.Name)
}

// prepare opens the data for the server's task, unless it is open already. A server never names the code that is run.
func (c *Client) prepare(described *pb.DescribeTaskResponse) error {
	if name := described.GetTaskName(); name != c.task.Name() {
		return fault.Stopf(fault.Declined, "this federation learns %s, and this client %s", name, c.task.Name())
	}
	federation, settings := described.GetFederationName(), described.GetTaskSettings()
	if c.place != nil && c.place.federation == federation && maps.Equal(c.place.settings, settings) {
		return nil
	}
	c.leavePlace("the server has another task now")
	training, err := c.task.Open(settings, c.config.Data)
	if err != nil {
		return err
	}
	shop := &work.Shop{
		Connection: c.connection, Store: c.store, Training: training, Federation: federation, Log: c.log,
	}
	c.place = &place{federation, settings, training, work.NewBench(shop, c.config.Limits)}
	c.log.Info("federation", "name", federation, "task", described.GetTaskName())
	return nil
}

func (c *Client) leavePlace(reason string) {
	if c.place != nil {
		c.place.bench.Close(reason)
	}
	c.place = nil
}
