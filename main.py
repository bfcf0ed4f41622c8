from latent_encoder.service.__main__ import main

raise SystemExit(main())
