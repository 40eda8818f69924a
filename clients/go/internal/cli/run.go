package cli

import (
	"flag"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"fedstream/client/internal/client"
	"fedstream/client/internal/codec"
	"fedstream/client/internal/fault"
	"fedstream/client/internal/identity"
	"fedstream/client/internal/limits"
	"fedstream/client/internal/link"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/work"
)

const runHelp = `Usage: fedstream-client run --data FILE [OPTIONS]

Take part in the federation that was joined, until it ends. It reconnects by itself, and never repeats a finished training.

`

// What may be said of a client's updates: `auto` takes whatever the coordinator has chosen.
const auto = "auto"

type runOptions struct {
	server, name, data, out, stateDir string
	identity                          string
	certificate, key, serverCA        string
	fingerprint                       string
	plaintext                         bool
	maxEpochs                         uint
	maxHours, maxSeconds, giveUpAfter float64
	encoding                          string
	joinedServer                      string // by the identity, if there is one
}

func readRun(words []string) (*client.Config, error) {
	var o runOptions
	flags := newFlags("run", runHelp)
	o.define(flags)
	others, err := parse(flags, words)
	if err != nil {
		return nil, err
	}
	if len(others) > 0 {
		return nil, fault.Stopf(fault.BadConfiguration, "%q is no option", others[0])
	}
	return o.config()
}

func (o *runOptions) define(flags *flag.FlagSet) {
	flags.StringVar(&o.server, "server", "", "`HOST:PORT` of the server [as joined]")
	flags.StringVar(&o.name, "name", "", "this `SITE`'s name [as joined, or as its certificate says]")
	flags.StringVar(&o.data, "data", "", "features `FILE`, as `fedclient features` writes it (FILE.features)")
	flags.StringVar(&o.identity, "identity", "", "`DIR` that joining made [~/.local/state/fedstream/identity]")
	flags.StringVar(&o.certificate, "certificate", "", "PEM `FILE`: a certificate of your own authority, instead of joining")
	flags.StringVar(&o.key, "key", "", "PEM `FILE`: its private key")
	flags.StringVar(&o.serverCA, "server-ca", "", "PEM `FILE`: the authority that signed the server's certificate")
	flags.StringVar(&o.fingerprint, "fingerprint", "", "`SHA256:HEX`, only for a server with --open-enrolment: its fingerprint")
	flags.BoolVar(&o.plaintext, "plaintext", false, "no TLS; only for a server on this machine")
	flags.UintVar(&o.maxEpochs, "max-epochs", 0, "most epochs per round allowed here [no limit]")
	flags.Float64Var(&o.maxHours, "max-hours", 0, "most hours of training per round [no limit]")
	flags.Float64Var(&o.maxSeconds, "max-seconds", 0, "the same in seconds [no limit]")
	flags.StringVar(&o.encoding, "update-encoding", auto, "how updates may travel: `WORD` is auto, as the coordinator has "+
		"chosen, or one of "+strings.Join(codec.Words(), ", ")+"; raw where the server does not take it")
	flags.StringVar(&o.out, "out", "", "`DIR` for the final model [runs/SITE]")
	flags.StringVar(&o.stateDir, "state-dir", "", "`DIR` for what must survive a restart "+
		"[~/.local/state/fedstream-go/HOST_PORT/SITE]")
	flags.Float64Var(&o.giveUpAfter, "give-up-after", 0, "end after so many `SECONDS` without the server [never]")
}

func (o *runOptions) config() (*client.Config, error) {
	config := &client.Config{Server: o.server, Name: o.name, Data: o.data, Out: o.out, StateDir: o.stateDir}
	for _, step := range []func(*client.Config) error{o.readLimits, o.readEncoding, o.readTrust, o.check} {
		if err := step(config); err != nil {
			return nil, err
		}
	}
	return config, nil
}

func (o *runOptions) readLimits(config *client.Config) error {
	hours, seconds, giveUp := o.maxHours, o.maxSeconds, o.giveUpAfter
	for _, number := range []float64{hours * 3600, seconds, giveUp} {
		if !(number >= 0 && number < math.MaxInt64/1e9) {
			return fault.Stopf(fault.BadConfiguration, "spans are numbers from 0 on")
		}
	}
	if hours > 0 && seconds > 0 {
		return fault.Stopf(fault.BadConfiguration, "give --max-hours or --max-seconds, not both")
	}
	config.Limits = work.Limits{
		MaxEpochs: uint32(min(o.maxEpochs, math.MaxUint32)), MaxTraining: inSeconds(hours*3600 + seconds),
	}
	config.GiveUpAfter = inSeconds(giveUp)
	return nil
}

func inSeconds(number float64) time.Duration { return time.Duration(number * float64(time.Second)) }

func (o *runOptions) readEncoding(config *client.Config) error {
	if o.encoding == auto {
		config.Encodings = codec.All()[1:] // raw is among them anyway
		return nil
	}
	encoding, known := codec.ByWord(o.encoding)
	if !known {
		return fault.Stopf(fault.BadConfiguration,
			"--update-encoding is auto or one of %s, not %q", strings.Join(codec.Words(), ", "), o.encoding)
	}
	if encoding != pb.Encoding_ENCODING_RAW {
		config.Encodings = []pb.Encoding{encoding}
	}
	return nil
}

var fingerprint = regexp.MustCompile(`^sha256:[0-9a-fA-F]{64}$`)

// readTrust says how the server is known: one way, and by the identity where none is named.
func (o *runOptions) readTrust(config *client.Config) error {
	files := identity.Files{Key: o.key, Certificate: o.certificate, Authority: o.serverCA}
	hasFiles := files != identity.Files{}
	if hasFiles && (o.key == "" || o.certificate == "" || o.serverCA == "") {
		return fault.Stopf(fault.BadConfiguration,
			"--certificate, --key and --server-ca go together: name all three files, or none")
	}
	ways := 0
	for _, isNamed := range []bool{hasFiles, o.fingerprint != "", o.plaintext, o.identity != ""} {
		if isNamed {
			ways++
		}
	}
	switch {
	case ways > 1:
		return fault.Stopf(fault.BadConfiguration,
			"give one of --identity, files of your own, --fingerprint and --plaintext")
	case o.plaintext:
		config.Trust = &link.Trust{}
	case o.fingerprint != "":
		if !fingerprint.MatchString(o.fingerprint) {
			return fault.Stopf(fault.BadConfiguration,
				"--fingerprint: write sha256: and 64 hexadecimal digits, as the server prints it")
		}
		config.Trust = &link.Trust{Fingerprint: o.fingerprint}
	case hasFiles:
		config.Trust = &link.Trust{Read: files.Read}
		return nameByCertificate(config, files)
	default:
		return o.trustIdentity(config)
	}
	return nil
}

func nameByCertificate(config *client.Config, files identity.Files) (err error) {
	if _, err = files.Read(); err == nil && config.Name == "" {
		config.Name, err = files.Name()
	}
	return err
}

func (o *runOptions) trustIdentity(config *client.Config) error {
	folder := identity.Default()
	if o.identity != "" {
		folder = identity.Folder{Path: o.identity}
	}
	joined, err := folder.Membership()
	switch {
	case err != nil:
		return err
	case joined == nil && o.identity != "":
		return fault.Stopf(fault.BadConfiguration,
			"no site has joined with %s: run `fedstream-client join` first", folder.Path)
	case joined == nil:
		return fault.Stopf(fault.BadConfiguration,
			"this site has not joined: run `fedstream-client join` with the coordinator's token first, or "+
				"give the --identity folder that it made")
	case config.Name != "" && config.Name != joined.Name:
		return fault.Stopf(fault.BadConfiguration,
			"--name: %s is the identity of %s; leave the name off, or give another "+
				"--identity", folder.Path, joined.Name)
	}
	o.joinedServer = joined.Server
	config.Name, config.Identity, config.Trust = joined.Name, &folder, &link.Trust{Read: folder.Files().Read}
	if config.Server == "" {
		config.Server = joined.Server
	}
	return nil
}

var notInName = regexp.MustCompile(`[^A-Za-z0-9._-]`)

func (o *runOptions) check(config *client.Config) error {
	if config.Name == "" {
		host, _ := os.Hostname() // an empty name is refused below
		config.Name = strings.TrimLeft(notInName.ReplaceAllString(host, "-"), "._-")
	}
	host, _, err := link.SplitAddress(config.Server)
	switch {
	case err != nil:
		return fault.Stopf(fault.BadConfiguration, "--server: %v", err)
	case o.plaintext && !link.IsLoopback(host):
		return fault.Stopf(fault.BadConfiguration,
			"--plaintext is for a server on this machine only; join %s with `fedstream-client join`", host)
	case config.Data == "":
		return fault.Stopf(fault.BadConfiguration,
			"add --data FILE: a features file, as `fedclient features` writes it")
	case !limits.IsClientName(config.Name):
		return fault.Stopf(fault.BadConfiguration,
			"a name has 1 to 64 characters of a-z A-Z 0-9 . _ -, a letter or digit first; give one with --name")
	}
	if config.Out == "" {
		config.Out = filepath.Join("runs", config.Name)
	}
	if config.StateDir == "" {
		config.StateDir = o.stateFolder(config)
	}
	return nil
}

// stateFolder is that of the server that was joined, whatever address it is dialled at now. Earlier versions named it
// after that address: where there is such a folder, the site goes on with what it holds.
func (o *runOptions) stateFolder(config *client.Config) string {
	of := func(server string) string {
		return filepath.Join(identity.StateHome(), "fedstream-go", notInName.ReplaceAllString(server, "_"), config.Name)
	}
	dialled := of(config.Server)
	if _, err := os.Stat(dialled); err == nil || o.joinedServer == "" {
		return dialled
	}
	return of(o.joinedServer)
}
